"""Unilateral gradient surgery: forget as fast as the retain loss allows, in closed form.

Source: Unlearning gradient (UNGrad) of EUPMU, NeurIPS 2025, arXiv:2510.22124.
Differs: ``eps`` >= 0 tolerates growth (the reference code counts the other way round); forget and
    retain batches are drawn apart, so no step is without a forget record; batch norm stays frozen
    during it; plain SGD without momentum, because a direction kept from earlier steps obeys no
    constraint of this one (Adam where the parent was trained with it); the forget loss is a
    bounded ascent unless another is asked for; the norm of a step's direction is cut at 10.
Cost: per step one forward and backward pass over a forget and a retain batch, ``epochs`` passes
    over the retain set at most; two copies of the gradient.
Promise: approximate. To first order no step raises the loss of its retain batch by more than
    ``eps`` times the learning rate.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import nn

from ..problem import Problem
from ._descent import LARGEST_GRADIENT_ALONE, Plan, rate
from ._registry import Need, unlearners
from ._surgery import Losses, SurgeryOptions, explicit, unilateral


class UngradConfig(SurgeryOptions):
    """Step along the forget gradient without its part that would raise the retain loss."""

    name: Literal["ungrad"] = "ungrad"
    eps: float = Field(
        0.0,
        ge=0,
        le=10,
        description="Growth of the retain loss that is tolerated per step, in nats per unit of "
        "learning rate.",
    )

    needs: ClassVar[tuple[Need, ...]] = ("retain",)
    source: ClassVar[str] = "EUPMU, NeurIPS 2025, arXiv:2510.22124"


@unlearners
def ungrad(problem: Problem, config: UngradConfig) -> nn.Module:
    """Train, and return, ``problem.model``.

    Raises:
        MissingEvidence: without a retain set, or without the tuning records of a forget loss.
        Infeasible: if the forget loss has nowhere to go.
    """
    losses = Losses(problem, config.forget_loss)
    plan = Plan(
        epochs=config.epochs,
        lr=rate(problem, config.lr, sgd=0.03, adamw=5e-5),
        pace="retain",
        clip=LARGEST_GRADIENT_ALONE,
        momentum=0.0,
        stop=config.stop,
    )
    return explicit(problem, losses, lambda of: unilateral(of, config.eps), plan)
