"""How far accuracies and MIA-efficacy are from an oracle's: the gaps, their mean, and ToW.

UA = 1 - accuracy on forget records, RA = accuracy on retained ones, TA = accuracy on never-seen
ones (of the classes that stay), MIA = efficacy of the SVC attack on confidence.
Avg. gap = mean of the four distances. ToW = product of 1 - distance over forget, retained and
never-seen accuracy; ToW-MIA takes MIA-efficacy in place of the first.

Source: Fan et al., ICLR 2024, arXiv:2310.12508 (Avg. gap); Zhao et al., NeurIPS 2024,
    arXiv:2406.01257 (ToW).
Differs: prints the four terms, because a mean hides which one is off.
Reference: an oracle, which it needs; with a second oracle, the same numbers between the two are
    the floor. 0 points and 1 are perfect; small gaps can still hide differences between records.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from ..errors import MissingEvidence
from ..findings import Finding
from ..measures import accuracy
from ..problem import Evidence
from ..svc import efficacy
from ._registry import AuditOptions, Need, audits

TERMS = ("ua", "ra", "ta", "mia_efficacy")


class AvgGapConfig(AuditOptions):
    """Gaps of UA, RA, TA and MIA-efficacy to an oracle, their mean, ToW and ToW-MIA."""

    name: Literal["avg_gap"] = "avg_gap"

    routine: ClassVar[bool] = False
    needs: ClassVar[tuple[Need, ...]] = ("holdout", "retain", "oracle")
    source: ClassVar[str] = "Fan et al., ICLR 2024, arXiv:2310.12508; Zhao et al., NeurIPS 2024"


@audits
def avg_gap(evidence: Evidence, config: AvgGapConfig) -> list[Finding]:
    """Return the four gaps, their mean, and both products.

    Raises:
        MissingEvidence: without oracle, retained records or never-seen ones of a class that stays.
    """
    evidence.need_oracle()
    oracle = _numbers(evidence, "oracle")
    found = _gaps(_numbers(evidence, "after"), oracle)
    floor = None
    if len(evidence.oracles) > 1:
        floor = _gaps(_numbers(evidence, "oracle_2"), oracle)
    return [
        Finding(
            audit=config.name,
            measure=measure,
            scope="forget, retain and holdout" if measure in _WHOLE else _SCOPES[measure],
            value=value,
            unit="1" if measure.startswith("tow") else "points",
            reference=floor[measure] if floor else _PERFECT.get(measure, 0.0),
            reference_name="second oracle" if floor else "oracle",
            examples=len(evidence.forget),
        )
        for measure, value in found.items()
    ]


_WHOLE = ("avg_gap", "tow", "tow_mia")
_SCOPES = {
    "ua_gap": "forget",
    "ra_gap": "retain",
    "ta_gap": "holdout",
    "mia_efficacy_gap": "forget",
}
_PERFECT = {"tow": 1.0, "tow_mia": 1.0}


def _numbers(evidence: Evidence, model: str) -> dict[str, float]:
    """UA, RA, TA and MIA-efficacy of one model, as shares."""
    evidence.check_time()
    retain, holdout = evidence.need_retain(), evidence.need_holdout()
    logits = evidence.scores[model]
    stays = ~holdout.labels.new_tensor(
        [label in evidence.forget_classes for label in holdout.labels.tolist()]
    ).bool()
    if not bool(stays.any()):
        raise MissingEvidence("no holdout record is of a class that stays")
    return {
        "ua": 1 - accuracy(logits["forget"], evidence.forget.labels),
        "ra": accuracy(logits["retain"], retain.labels),
        "ta": accuracy(logits["holdout"][stays], holdout.labels[stays]),
        "mia_efficacy": efficacy(evidence, model, "confidence").value,
    }


def _gaps(found: dict[str, float], oracle: dict[str, float]) -> dict[str, float]:
    gaps = {term: abs(found[term] - oracle[term]) for term in TERMS}
    others = (1 - gaps["ra"]) * (1 - gaps["ta"])
    return {
        **{f"{term}_gap": 100 * gap for term, gap in gaps.items()},
        "avg_gap": 100 * math.fsum(gaps.values()) / len(gaps),
        "tow": (1 - gaps["ua"]) * others,
        "tow_mia": (1 - gaps["mia_efficacy"]) * others,
    }
