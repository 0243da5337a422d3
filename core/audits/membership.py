"""Population membership attack: forget records against never-seen records of the same classes.

Source: Yeom et al. 2018, arXiv:1709.01604 (threshold attack); score scale of Carlini et al. 2022,
    arXiv:2112.03570; modified entropy of Song and Mittal 2021, arXiv:2003.10595.
Differs: no oracle and no shadow models; never-seen records are weighted to the class mix of the
    forget set. Two-sided: an AUC below 1/2 marks the forget records just as well.
Reference: the parent's own value; a perfect model scores 1/2 (AUC, balanced accuracy), 1 % (TPR at
    1 % FPR), 0 (KS).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from ..attack import Population, Score, allowed_band, population, sureness
from ..findings import Finding
from ..intervals import Estimate
from ..measures import balanced_accuracy, kolmogorov_smirnov, margin, tpr_at_fpr
from ..problem import Evidence
from ._registry import AuditOptions, Need, audits

LOWEST_FPR = 0.001

Measure = Callable[[Tensor, Tensor, Tensor], Estimate]
"""Scores of members and of others, and weights of the others, to one value."""


class MembershipConfig(AuditOptions):
    """Tell forget records from never-seen ones by the model's output, with the power to do so."""

    name: Literal["membership"] = "membership"
    fpr: float = Field(
        0.01,
        gt=0,
        lt=1,
        description="False positive rate at which the hit rate is read, beside that of 0.1 %.",
    )

    needs: ClassVar[tuple[Need, ...]] = ("holdout",)
    source: ClassVar[str] = (
        "Yeom et al. 2018, arXiv:1709.01604; Carlini et al. 2022, arXiv:2112.03570"
    )


@audits
def membership(evidence: Evidence, config: MembershipConfig) -> list[Finding]:
    """Return AUC (margin and modified entropy), TPR at low FPR, balanced accuracy at a threshold
    chosen on half of the scores, KS distance, and the power.

    Raises:
        MissingEvidence: without never-seen records of the forgotten classes.
    """
    attack = population(evidence)
    return [
        _auc(attack, "auc_margin", margin),
        _auc(attack, "auc_modified_entropy", sureness),
        *(_tpr(attack, fpr) for fpr in dict.fromkeys((config.fpr, LOWEST_FPR))),
        _measured(attack, "balanced_accuracy", balanced_accuracy),
        *_ks(attack),
        _power(attack),
    ]


def _auc(attack: Population, measure: str, score: Score) -> Finding:
    after = attack.auc("after", score)
    return Finding(
        audit="membership",
        measure=measure,
        scope="forget",
        value=after.value,
        unit="1",
        reference=attack.auc("before", score).value,
        reference_name="before",
        interval=(after.low, after.high),
        examples=len(attack.match.forget),
        reason=attack.left_out,
    )


def _tpr(attack: Population, fpr: float) -> Finding:
    return _measured(attack, f"tpr_at_{fpr:g}_fpr", partial(tpr_at_fpr, fpr=fpr))


def _measured(attack: Population, measure: str, found: Measure) -> Finding:
    """Tell a measure of margins; inconclusive where there are too few records for it."""
    weights = attack.match.weights
    count = len(attack.match.forget)
    try:
        after = found(*attack.scores("after"), weights)
        before = found(*attack.scores("before"), weights)
    except ValueError as error:
        return Finding(
            audit="membership",
            measure=measure,
            scope="forget",
            value=None,
            unit="1",
            examples=count,
            verdict="inconclusive",
            reason=str(error),
        )
    return Finding(
        audit="membership",
        measure=measure,
        scope="forget",
        value=after.value,
        unit="1",
        reference=before.value,
        reference_name="before",
        interval=(after.low, after.high),
        examples=count,
    )


def _ks(attack: Population) -> list[Finding]:
    before = kolmogorov_smirnov(*attack.scores("before"), attack.match.weights)
    after = kolmogorov_smirnov(*attack.scores("after"), attack.match.weights)
    return [
        Finding(
            audit="membership",
            measure=measure,
            scope="forget",
            value=value,
            unit="1",
            reference=reference,
            reference_name="before",
            examples=len(attack.match.forget),
        )
        for measure, value, reference in zip(
            ("ks_distance", "ks_p_value"), after, before, strict=True
        )
    ]


def _power(attack: Population) -> Finding:
    band = allowed_band(attack.auc("before").value - 0.5)
    power = attack.power(band)
    count = len(attack.match.forget)
    return Finding(
        audit="membership",
        measure="power",
        scope="forget",
        value=power,
        unit="1",
        examples=count,
        reason=f"probability that a perfect model would be found within {band:.3f} of 1/2 with "
        f"{count} forget and {len(attack.match.others)} never-seen records",
    )
