"""A fixed weighted sum of the forget and the retain loss.

Source: the baseline of EUPMU, NeurIPS 2025, arXiv:2510.22124.
Differs: forget and retain batches are drawn apart, so that the weight does not depend on how many
    records are to be forgotten; batch norm stays frozen during it; the norm of a step's gradient
    is cut at 1.
Cost: per step one forward and backward pass over a forget and a retain batch, ``epochs`` passes
    over the retain set at most; momentum, one copy of the model.
Promise: approximate. Where the gradients conflict, the larger one wins.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from ..problem import Problem
from ._descent import LARGEST_GRADIENT, Pair, Plan, descend, rate
from ._registry import Need, unlearners
from ._surgery import Losses, SurgeryOptions


class LinearWeightingConfig(SurgeryOptions):
    """Descend the forget loss plus a fixed multiple of the retain loss."""

    name: Literal["linear_weighting"] = "linear_weighting"
    retain_weight: float = Field(
        1.0, ge=0, le=100, description="Weight of the retain loss; that of the forget loss is 1."
    )

    needs: ClassVar[tuple[Need, ...]] = ("retain",)
    source: ClassVar[str] = "baseline of EUPMU, NeurIPS 2025, arXiv:2510.22124"


@unlearners
def linear_weighting(problem: Problem, config: LinearWeightingConfig) -> nn.Module:
    """Train, and return, ``problem.model``.

    Raises:
        MissingEvidence: without a retain set, or without the tuning records of a forget loss.
        Infeasible: if the forget loss has nowhere to go.
    """
    losses = Losses(problem, config.forget_loss)

    def gradients(pair: Pair) -> Tensor:
        loss = losses.forget(pair) + config.retain_weight * losses.retain(pair)
        loss.backward()
        return loss.detach()

    plan = Plan(
        epochs=config.epochs,
        lr=rate(problem, config.lr, sgd=0.01, adamw=1e-4),
        pace="retain",
        clip=LARGEST_GRADIENT,
        stop=config.stop,
    )
    return descend(problem, gradients, plan, forget=losses.records)
