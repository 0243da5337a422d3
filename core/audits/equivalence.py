"""Whether forget and never-seen records score alike: two one-sided tests, with their power.

Not being told apart proves nothing with few records. Here the burden is the other way round: the
null hypothesis is an AUC outside 1/2 +- kappa, and the p-value is what is left of it.

Source: Schuirmann 1987, J. Pharmacokinetics and Biopharmaceutics 15, 657-680 (two one-sided
    tests); DeLong et al. 1988, Biometrics 44 (the interval that is inverted).
Differs: intervals are those of the gates, so p <= 0.05 says the same as a 90 % interval inside
    the band.
Reference: 1/2, which a perfect model scores on average; the parent's AUC sets the band. No oracle.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from ..attack import Population, Score, population, sureness
from ..findings import Finding, Verdict
from ..intervals import auc_interval
from ..measures import margin
from ..problem import Evidence
from ..verdicts import LEVEL, verdict_of
from ._registry import AuditOptions, Need, audits


class EquivalenceConfig(AuditOptions):
    """Test that forget and never-seen records score alike, on margin and modified entropy."""

    name: Literal["equivalence"] = "equivalence"
    kappa: float = Field(
        0.05,
        gt=0,
        le=0.5,
        description="Widest distance from 1/2 that counts as alike; at most half the parent's own.",
    )
    smallest_power: float = Field(
        0.5, ge=0, le=1, description="Power below which nothing is concluded."
    )

    needs: ClassVar[tuple[Need, ...]] = ("holdout", "before")
    source: ClassVar[str] = "Schuirmann 1987, J. Pharmacokinetics and Biopharmaceutics 15"


@audits
def equivalence(evidence: Evidence, config: EquivalenceConfig) -> list[Finding]:
    """Return p-value and power of the test per score.

    Raises:
        MissingEvidence: without never-seen records of the forgotten classes.
    """
    attack = population(evidence)
    scores: dict[str, Score] = {"margin": margin, "modified_entropy": sureness}
    return [f for name, score in scores.items() for f in _test(attack, name, score, config)]


def tost_p_value(members: Tensor, others: Tensor, weights: Tensor, kappa: float) -> float:
    """Smallest p at which the AUC's interval of level 1 - 2p lies inside 1/2 +- kappa.

    1/2 or more where the AUC itself lies outside.
    """

    def inside(p: float) -> bool:
        found = auc_interval(members, others, weights, level=1 - 2 * p)
        return 0.5 - kappa <= found.low and found.high <= 0.5 + kappa

    low, high = 0.0, 0.5
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if inside(middle) else (middle, high)
    return high


def _test(attack: Population, name: str, score: Score, config: EquivalenceConfig) -> list[Finding]:
    before = attack.auc("before", score, level=LEVEL)
    after = attack.auc("after", score, level=LEVEL)
    kappa = min(config.kappa, abs(before.value - 0.5) / 2)
    power = attack.power(kappa)
    count = len(attack.match.forget)
    verdict: Verdict = "inconclusive"
    if power >= config.smallest_power:
        verdict = attack.judged(verdict_of((after.low, after.high), (0.5 - kappa, 0.5 + kappa)))
    return [
        Finding(
            audit="equivalence",
            measure=f"tost_p_{name}",
            scope="forget",
            value=tost_p_value(*attack.scores("after", score), attack.match.weights, kappa),
            unit="1",
            reference=0.05,
            reference_name="level of the test",
            examples=count,
            verdict=verdict,
            reason=f"AUC {after.value:.3f} [{after.low:.3f}, {after.high:.3f}] against 1/2 +- "
            f"{kappa:.3f}; a perfect model would pass with probability {power:.2f}",
        ),
        Finding(
            audit="equivalence",
            measure=f"power_{name}",
            scope="forget",
            value=power,
            unit="1",
            examples=count,
            reason=f"probability that a perfect model would pass, with {count} forget and "
            f"{len(attack.match.others)} never-seen records and a band of +-{kappa:.3f}",
        ),
    ]
