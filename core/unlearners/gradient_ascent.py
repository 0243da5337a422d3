"""Gradient ascent on the forget set, bounded.

Source: the baselines GA and GA_l1 of Jia et al., NeurIPS 2023, arXiv:2304.04934; Thudi et al.,
    EuroS&P 2022, arXiv:2109.13398.
Differs: a record's loss counts up to ln C + ``margin`` only, so that a record at chance pulls no
    further (the reference climbs without bound, and the network collapses); the gradient is
    clipped after the backward pass; SGD has no momentum, which would coast past the bound; batch
    norm stays on its running statistics; it stops as soon as the forget set is recognised no
    better than never-seen records. The bound allows a rate of 0.05 over 20 epochs (there: 1e-4
    over 5).
Cost: ``epochs`` forward and backward passes over the forget set at most. No retained record is
    needed but for batch norm's statistics.
Promise: approximate. It moves the decision on the forget set and whatever shares its weights;
    nothing holds the retain set in place but the bound, the clip and the early stop.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..problem import Problem
from ._descent import DescentOptions, Pair, Plan, descend, rate
from ._l1 import l1_norm, penalised
from ._registry import unlearners


class GradientAscentConfig(DescentOptions):
    """Climb the loss of the forget set until it is at chance."""

    name: Literal["gradient_ascent"] = "gradient_ascent"
    epochs: int = Field(20, ge=1, le=20, description="Passes over the forget set at most.")
    clip: float = Field(
        1.0, gt=0, le=100, description="Largest norm of a step's gradient, after backward."
    )
    bounded: bool = Field(
        True, description="Count the loss of a record up to ln C + margin, and no further."
    )
    margin: float = Field(
        1.0, ge=0, le=10, description="How far above the loss of a guess, in nats, records may go."
    )
    gamma: float = Field(
        0.0, ge=0, le=1, description="Price of a weight's absolute value, as in l1_sparse."
    )

    source: ClassVar[str] = "Jia et al., NeurIPS 2023, arXiv:2304.04934"


@unlearners
def gradient_ascent(problem: Problem, config: GradientAscentConfig) -> nn.Module:
    """Climb in place, and return, ``problem.model``.

    Raises:
        Diverged: if a loss is not finite.
    """
    bound = math.log(problem.num_classes) + config.margin if config.bounded else math.inf
    weights = penalised(problem.model, "weights")

    def gradients(pair: Pair) -> Tensor:
        x, y = pair.forget
        losses = F.cross_entropy(problem.model(x), y, reduction="none")
        loss = -losses.clamp(max=bound).mean()
        if config.gamma:
            loss = loss + config.gamma * l1_norm(weights)
        loss.backward()
        return loss

    plan = Plan(
        epochs=config.epochs,
        lr=rate(problem, config.lr, sgd=0.05, adamw=1e-5),
        momentum=0.0,
        clip=config.clip,
        stop=config.stop,
    )
    return descend(problem, gradients, plan, retain=problem.forget.take([]))
