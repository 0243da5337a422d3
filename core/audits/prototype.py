"""How much of a forgotten class comes back when the head is rebuilt from a few records' features.

Each class is given the mean of a few records' penultimate features; never-seen records of the
forgotten classes go to the nearest mean.

Source: the prototypical relearning attack of arXiv:2506.01318 (2025).
Differs: no training; all classes get prototypes, so the old head plays no part; never-seen records
    are recovered, which is knowledge and not memory of single records.
Reference: an oracle, or a fresh network where none was trained; a class that was never seen is
    recovered to some degree too. The parent's value stands beside. An oracle is optional.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..classifier import penultimate
from ..data import Records
from ..determinism import generator
from ..errors import MissingEvidence
from ..findings import Finding
from ..intervals import Estimate, proportion
from ..problem import Evidence
from ..verdicts import LEVEL
from ._registry import AuditOptions, Need, audits


class PrototypeConfig(AuditOptions):
    """Accuracy on a forgotten class with a head rebuilt from the means of a few features."""

    name: Literal["prototype"] = "prototype"
    shots: int = Field(10, ge=1, le=1000, description="Records per class that make a prototype.")
    repeats: int = Field(5, ge=1, le=100, description="Draws of these records to average over.")

    routine: ClassVar[bool] = False
    needs: ClassVar[tuple[Need, ...]] = ("holdout", "retain", "before")
    source: ClassVar[str] = "prototypical relearning attack, 2025, arXiv:2506.01318"


@audits
def prototype(evidence: Evidence, config: PrototypeConfig) -> list[Finding]:
    """Return the recovered accuracy on the candidate and on the parent, with its reference.

    Raises:
        MissingEvidence: if the request names records, or no never-seen record is of its classes.
    """
    if evidence.selector != "class":
        raise MissingEvidence("prototypes are of whole classes; the request names records")
    holdout = evidence.need_holdout()
    gone = torch.isin(holdout.labels, torch.tensor(sorted(evidence.forget_classes)))
    if not bool(gone.any()):
        raise MissingEvidence("the holdout has no record of a forgotten class")
    asked = holdout.take(gone)
    draws = _draws(evidence, config)

    def recovered(model: nn.Module) -> Estimate:
        evidence.check_time()

        def features(records: Records) -> Tensor:
            return penultimate(
                model, records, batch_size=evidence.batch_size, device=evidence.device
            )

        values = features(asked)
        hits = torch.stack(
            [nearest(features(shown), shown.labels, values) == asked.labels for shown in draws]
        )
        return proportion(round(float(hits.double().mean(0).sum())), len(asked), level=LEVEL)

    reference, name = _reference(evidence)
    baseline = recovered(reference).value
    return [
        Finding(
            audit=config.name,
            measure=measure,
            scope="holdout",
            value=found.value,
            unit="1",
            reference=baseline,
            reference_name=name,
            interval=(found.low, found.high),
            examples=len(asked),
        )
        for measure, found in (
            ("recovered_accuracy", recovered(evidence.after)),
            ("recovered_accuracy_before", recovered(evidence.before)),
        )
    ]


def nearest(shown: Tensor, labels: Tensor, values: Tensor) -> Tensor:
    """Label of the class whose mean of the shown features is nearest to each of the values.

    Example:
        >>> shown = torch.tensor([[0.0, 0.0], [0.0, 2.0], [9.0, 9.0]])
        >>> nearest(shown, torch.tensor([4, 4, 7]), torch.tensor([[1.0, 1.0], [8.0, 8.0]])).tolist()
        [4, 7]
    """
    classes = labels.unique()
    means = torch.stack([shown[labels == c].double().mean(dim=0) for c in classes])
    found: Tensor = classes[torch.cdist(values.double(), means).argmin(dim=1)]
    return found


def _draws(evidence: Evidence, config: PrototypeConfig) -> list[Records]:
    """For each repeat a few records of every class, forget and retained ones together."""
    sources = (evidence.forget, evidence.need_retain())
    draw = generator(evidence.seed)
    found = []
    for _ in range(config.repeats):
        parts = []
        for source in sources:
            order = torch.randperm(len(source), generator=draw)
            parts += [
                source.take(order[source.labels[order] == label][: config.shots])
                for label in source.labels.unique().tolist()
            ]
        found.append(_joined(parts))
    return found


def _joined(parts: list[Records]) -> Records:
    return Records(
        images=torch.cat([p.images for p in parts]),
        labels=torch.cat([p.labels for p in parts]),
        rows=torch.cat([p.rows for p in parts]),
        preprocessing=parts[0].preprocessing,
    )


def _reference(evidence: Evidence) -> tuple[nn.Module, str]:
    if evidence.oracles:
        return evidence.oracles[0], "oracle"
    if evidence.fresh is None:
        raise MissingEvidence("there is neither an oracle nor a fresh network to compare with")
    return evidence.fresh(evidence.seed), "fresh network"
