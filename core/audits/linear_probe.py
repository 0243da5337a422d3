"""Whether what was forgotten can still be read from the features before the last layer.

A request for classes: forgotten against other classes on never-seen records, which asks whether
the knowledge or only the head is gone. A request for records: forget against never-seen records
of the same classes, which asks whether the features still know whom they were trained on.

Source: Alain and Bengio 2016, arXiv:1610.01644 (linear probes).
Differs: k-fold, so the probe is scored on records it was not fitted on; AUC instead of accuracy,
    because the sides differ in size. Its interval takes the folds' scores as independent.
Reference: for classes an oracle, or a fresh network where none was trained; random features
    separate something too. For records 1/2. The parent's value stands beside. An oracle is
    optional.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from ..classifier import penultimate
from ..data import Records
from ..determinism import generator
from ..errors import MissingEvidence
from ..findings import Finding
from ..intervals import Estimate, auc_interval
from ..problem import Evidence
from ..scores import draw_matched
from ..verdicts import LEVEL
from ._registry import AuditOptions, Need, audits


class LinearProbeConfig(AuditOptions):
    """Cross-validated logistic regression on penultimate features of what was forgotten."""

    name: Literal["linear_probe"] = "linear_probe"
    folds: int = Field(5, ge=2, le=20, description="Parts that the probe is scored on in turn.")
    most_records: int = Field(1000, ge=20, le=20_000, description="Records per side, at most.")
    strength: float = Field(
        1.0, gt=0, le=1e6, description="Inverse strength of the probe's L2 penalty."
    )

    routine: ClassVar[bool] = False
    needs: ClassVar[tuple[Need, ...]] = ("holdout", "before")
    source: ClassVar[str] = "Alain and Bengio 2016, arXiv:1610.01644"


@audits
def linear_probe(evidence: Evidence, config: LinearProbeConfig) -> list[Finding]:
    """Return the AUC of the probe on the candidate and on the parent, with its reference.

    Raises:
        MissingEvidence: with fewer records on a side than folds, or without a linear last layer.
    """
    forgotten, others = _sides(evidence, config)

    def probe(model: nn.Module) -> Estimate:
        evidence.check_time()
        first, second = (
            penultimate(model, records, batch_size=evidence.batch_size, device=evidence.device)
            for records in (forgotten, others)
        )
        return probe_auc(first, second, config)

    reference, name = _reference(evidence)
    found, parent = probe(evidence.after), probe(evidence.before)
    return [
        Finding(
            audit=config.name,
            measure=measure,
            scope="holdout" if evidence.selector == "class" else "forget",
            value=estimate.value,
            unit="1",
            reference=0.5 if reference is None else probe(reference).value,
            reference_name=name,
            interval=(estimate.low, estimate.high),
            examples=len(forgotten) + len(others),
        )
        for measure, estimate in (("probe_auc", found), ("probe_auc_before", parent))
    ]


def probe_auc(forgotten: Tensor, others: Tensor, config: LinearProbeConfig) -> Estimate:
    """AUC of a logistic regression on features[N, D] and [M, D], scored out of fold."""
    # They take most of a second to import, so not before they are needed.
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold
    from sklearn.preprocessing import StandardScaler

    values = torch.cat([forgotten, others]).double().numpy()
    truth = np.repeat([1, 0], [len(forgotten), len(others)])
    scores = np.empty(len(truth))
    folds = StratifiedKFold(config.folds, shuffle=True, random_state=0)
    for seen, unseen in folds.split(values, truth):
        scaler = StandardScaler().fit(values[seen])
        probe = LogisticRegression(C=config.strength, max_iter=5000, class_weight="balanced")
        probe.fit(scaler.transform(values[seen]), truth[seen])
        scores[unseen] = probe.decision_function(scaler.transform(values[unseen]))
    found = torch.from_numpy(scores)
    return auc_interval(found[: len(forgotten)], found[len(forgotten) :], level=LEVEL)


def _sides(evidence: Evidence, config: LinearProbeConfig) -> tuple[Records, Records]:
    holdout, most = evidence.need_holdout(), config.most_records
    if evidence.selector == "class":
        gone = torch.isin(holdout.labels, torch.tensor(sorted(evidence.forget_classes)))
        order = torch.randperm(len(holdout), generator=generator(evidence.seed))
        first, second = order[gone[order]], order[~gone[order]]
        first, second = first[:most].sort().values, second[:most].sort().values
        sides = holdout.take(first), holdout.take(second)
    else:
        labels = evidence.forget.labels
        first, second = draw_matched(labels, labels, holdout.labels, most, evidence.seed)
        sides = evidence.forget.take(first), holdout.take(second)
    if min(len(side) for side in sides) < config.folds:
        raise MissingEvidence(f"a probe needs at least {config.folds} records on either side")
    return sides


def _reference(evidence: Evidence) -> tuple[nn.Module | None, str]:
    if evidence.selector != "class":
        return None, "no difference"
    if evidence.oracles:
        return evidence.oracles[0], "oracle"
    if evidence.fresh is None:
        raise MissingEvidence("there is neither an oracle nor a fresh network to compare with")
    return evidence.fresh(evidence.seed), "fresh network"
