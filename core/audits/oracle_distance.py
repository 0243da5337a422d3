"""How far the predictions are from an oracle's, record by record.

Source: Golatkar et al. 2021, arXiv:2012.13431 (activation distance); Chundawat et al., AAAI 2023,
    arXiv:2205.08096 (Jensen-Shannon divergence to a retrained model).
Differs: the divergence is in bits, per record and then averaged, and 0 for equal predictions.
Reference: an oracle, which it needs. With a second oracle the distance between the two is the
    noise floor, and the ratio to it is what to read: about 1 is as good as retraining. Without a
    second one the reference is the parent's distance, which shows the way that was gone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

from torch import Tensor

from ..distances import activation_distance, alike, ends, jensen_shannon, mean_interval
from ..findings import Finding
from ..intervals import Estimate
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
    """Return both distances on forget, retained and never-seen records, and their ratios.

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
    return findings
