"""How far the predictions are from an oracle's, record by record.

Source: Golatkar et al. 2021, arXiv:2012.13431 (activation distance); Chundawat et al., AAAI 2023,
    arXiv:2205.08096 (Jensen-Shannon divergence to a retrained model); Maini et al. 2024,
    arXiv:2401.06121 (Kolmogorov-Smirnov test against a retrained model).
Differs: the divergence is in bits, per record and then averaged, and 0 for equal predictions; the
    test is on margins (there: truth ratios of a language model), and tells its distance too, since
    its p-value falls with the number of records for any fixed distance.
Reference: an oracle, which it needs. With a second oracle the distance between the two is the
    noise floor, and the ratio to it is what to read: about 1 is as good as retraining. Without a
    second one the reference is the parent's distance, which shows the way that was gone.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor

from ..data import Records
from ..distances import activation_distance, alike, ends, jensen_shannon, mean_interval
from ..errors import MissingEvidence
from ..findings import Finding
from ..intervals import Estimate
from ..measures import kolmogorov_smirnov, margin
from ..problem import Evidence
from ..verdicts import LEVEL
from ._registry import AuditOptions, Need, audits


class OracleDistanceConfig(AuditOptions):
    """Divergence and distance of the predictions from those of an oracle, with the noise floor."""

    name: Literal["oracle_distance"] = "oracle_distance"

    routine: ClassVar[bool] = False
    needs: ClassVar[tuple[Need, ...]] = ("oracle", "before")
    source: ClassVar[str] = "Golatkar et al. 2021, arXiv:2012.13431"


MEASURES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "jensen_shannon": (jensen_shannon, "bits"),
    "activation_distance": (activation_distance, "1"),
}


@audits
def oracle_distance(evidence: Evidence, config: OracleDistanceConfig) -> list[Finding]:
    """Return both distances on forget, retained and never-seen records, and their ratios, and how
    far the distributions of margins are apart.

    Raises:
        MissingEvidence: without an oracle.
    """
    evidence.need_oracle()
    findings = []
    for role, after in evidence.scores["after"].items():
        oracle = evidence.scores["oracle"][role]
        other = "oracle_2" if len(evidence.oracles) > 1 else "before"
        for measure, (distance, unit) in MEASURES.items():
            found = mean_interval(alike(distance(after, oracle)), level=LEVEL)
            reference = float(distance(evidence.scores[other][role], oracle).mean())
            findings.append(
                Finding(
                    audit=config.name,
                    measure=measure,
                    scope=role,
                    value=found.value,
                    unit=unit,
                    reference=reference,
                    reference_name="second oracle" if other == "oracle_2" else "before",
                    interval=ends(found),
                    examples=len(after),
                )
            )
            if other == "oracle_2" and reference > 0:
                findings.append(
                    Finding(
                        audit=config.name,
                        measure=f"{measure}_over_floor",
                        scope=role,
                        value=found.value / reference,
                        unit="1",
                        reference=1.0,
                        reference_name="second oracle",
                        interval=ends(Estimate(*(each / reference for each in found))),
                        examples=len(after),
                    )
                )
        findings += _ks(evidence, role, other)
    return findings


def _ks(evidence: Evidence, role: str, other: str) -> list[Finding]:
    """Two-sample test of margins, and the logarithm of its p-value."""
    records = {"forget": evidence.forget, "retain": evidence.retain, "holdout": evidence.holdout}
    labels = cast("Records", records[role]).labels
    margins = {
        name: margin(evidence.scores[name][role], labels) for name in ("after", "oracle", other)
    }
    if any(bool(torch.isnan(each).any()) for each in margins.values()):
        raise MissingEvidence("some predictions are not a number")
    after, reference = (
        kolmogorov_smirnov(margins[name], margins["oracle"]) for name in ("after", other)
    )
    return [
        Finding(
            audit="oracle_distance",
            measure=measure,
            scope=role,
            value=value,
            unit=unit,
            reference=of_reference,
            reference_name="second oracle" if other == "oracle_2" else "before",
            examples=len(labels),
        )
        for measure, unit, value, of_reference in (
            ("ks_distance", "1", after[0], reference[0]),
            ("ks_log10_p", "decades", _log10(after[1]), _log10(reference[1])),
        )
    ]


def _log10(p: float) -> float:
    return math.log10(max(p, sys.float_info.min))
