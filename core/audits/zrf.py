"""Zero retrain forgetting: how close predictions on forget records are to random networks'.

ZRF = 1 - mean over records of the Jensen-Shannon divergence, in bits, from a fresh network.

Source: Chundawat et al., AAAI 2023, arXiv:2205.08096.
Differs: averaged over several fresh networks; base 2 without clipping, so it lies in [0, 1]; held
    against never-seen records. Theirs takes 1 as ideal, which a model that guesses would reach.
Reference: the same number on never-seen records of the same class mix. Equal is perfect; above it
    the forget records are predicted more randomly than unseen ones. No oracle.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..attack import population
from ..determinism import generator
from ..distances import Weighted, alike, ends, jensen_shannon, mean_difference, mean_interval
from ..errors import MissingEvidence
from ..findings import Finding
from ..problem import Evidence
from ..scores import gather
from ..verdicts import LEVEL
from ._registry import AuditOptions, Need, audits


class ZRFConfig(AuditOptions):
    """Likeness of the predictions on forget records to those of untrained networks."""

    name: Literal["zrf"] = "zrf"
    seeds: int = Field(5, ge=5, le=100, description="Fresh networks to average over.")

    routine: ClassVar[bool] = False
    needs: ClassVar[tuple[Need, ...]] = ("holdout", "before")
    source: ClassVar[str] = "Chundawat et al., AAAI 2023, arXiv:2205.08096"


@audits
def zrf(evidence: Evidence, config: ZRFConfig) -> list[Finding]:
    """Return ZRF on forget records, and its difference to never-seen ones, before and after.

    Raises:
        MissingEvidence: without never-seen records of the forgotten classes, or without the
            network's builder.
    """
    attack = population(evidence)
    random = _random(evidence, config.seeds)

    def score(model: str) -> tuple[Weighted, Weighted]:
        values = {
            role: 1
            - torch.stack([jensen_shannon(evidence.scores[model][role], r) for r in nets]).mean(0)
            for role, nets in random.items()
        }
        return (
            alike(values["forget"][attack.match.forget]),
            Weighted(values["holdout"][attack.match.others], attack.match.weights),
        )

    after, before = score("after"), score("before")
    found = mean_interval(after[0], level=LEVEL)
    apart = mean_difference(*after, level=LEVEL)
    count = len(attack.match.forget)
    return [
        Finding(
            audit=config.name,
            measure="zrf",
            scope="forget",
            value=found.value,
            unit="1",
            reference=after[1].mean,
            reference_name="never-seen",
            interval=ends(found),
            examples=count,
        ),
        Finding(
            audit=config.name,
            measure="zrf_difference",
            scope="forget",
            value=apart.value,
            unit="1",
            reference=before[0].mean - before[1].mean,
            reference_name="before",
            interval=ends(apart),
            examples=count,
        ),
    ]


def _random(evidence: Evidence, seeds: int) -> dict[str, list[Tensor]]:
    """Logits of fresh networks for forget and never-seen records."""
    if evidence.fresh is None:
        raise MissingEvidence("nothing builds a fresh network")
    found: dict[str, list[Tensor]] = {"forget": [], "holdout": []}
    for seed in torch.randint(2**62, (seeds,), generator=generator(evidence.seed)).tolist():
        evidence.check_time()
        network = evidence.fresh(seed)
        for role, records in (("forget", evidence.forget), ("holdout", evidence.need_holdout())):
            found[role].append(
                gather(network, records, batch_size=evidence.batch_size, device=evidence.device)
            )
    return found
