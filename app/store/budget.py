"""The deletion budget: what approximate requests have used since a model was trained from scratch.

The error of approximate unlearning adds up over a lineage. Once a cap is reached, the ladder of the
next request starts with retraining, which sets everything back to zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile

from sqlalchemy import select
from sqlalchemy.orm import Session

from . import session as sessions
from .tables import Dataset, Document, Job, Model, Request, Rung, Version


@dataclass(frozen=True)
class Spent:
    """Sums over the approximate versions at the end of a lineage."""

    num_versions: int = 0
    share: float = 0.0
    """Of the training records, forgotten approximately."""
    relative_change: float = 0.0
    """Sum of the relative changes of the parameters."""
    utility_loss: float = 0.0
    """Sum of the drops of accuracy, as a share; a gain counts against a drop."""

    def reason(self) -> str | None:
        """Return the first cap that is reached, in words; None while there is budget left."""
        caps = sessions.settings()
        if self.num_versions >= caps.max_approximate_versions:
            return f"{self.num_versions} approximate versions in a row"
        if self.share >= caps.max_approximate_share:
            return f"{100 * self.share:.1f} % of the records forgotten approximately"
        if self.relative_change >= caps.max_relative_change:
            return f"parameters moved by {self.relative_change:.2f} of their norm"
        if self.utility_loss >= caps.max_utility_loss:
            return f"{100 * self.utility_loss:.1f} points of accuracy lost"
        return None


def spent(session: Session, model: Model) -> Spent:
    """Sum up the approximate versions that follow the last one trained from scratch."""
    chain = select(Version).where(
        Version.tenant_id == model.tenant_id,
        Version.model_id == model.id,
        Version.role == "chain",  # an oracle has no number, and stands in no lineage
    )
    versions = session.scalars(chain.order_by(Version.number.desc()))
    tail = [*takewhile(lambda each: each.outcome == "erased_approximate", versions)]
    if not tail:
        return Spent()
    gates = _gates(session, model.tenant_id, [each.job_id for each in tail])
    return Spent(
        num_versions=len(tail),
        share=_share(session, model, [each.id for each in tail]),
        relative_change=sum(_value(each, "changed") for each in gates),
        utility_loss=sum(_value(each, "utility") for each in gates),
    )


def _gates(
    session: Session, tenant_id: str, job_ids: list[str | None]
) -> list[dict[str, Document]]:
    """Gates by name of the rung that each of the jobs published."""
    published = select(Job.id, Job.result).where(Job.tenant_id == tenant_id, Job.id.in_(job_ids))
    found = []
    for job_id, result in session.execute(published).all():
        key = (tenant_id, job_id, (result or {}).get("published"))
        rung = None if key[2] is None else session.get(Rung, key)
        gates = [] if rung is None else rung.body.get("gates", [])
        found.append({gate["name"]: gate for gate in gates})
    return found


def _value(gates: dict[str, Document], name: str) -> float:
    return float(gates.get(name, {}).get("value") or 0.0)


def _share(session: Session, model: Model, version_ids: list[str]) -> float:
    if model.dataset_id is None:
        return 0.0  # of how many is not known; the other caps hold
    dataset = session.get(Dataset, (model.tenant_id, model.dataset_id))
    if dataset is None or not dataset.num_train:
        return 0.0
    chosen = select(Request.rows).where(
        Request.tenant_id == model.tenant_id, Request.applied_version_id.in_(version_ids)
    )
    return sum(len(rows) for rows in session.scalars(chosen)) / dataset.num_train
