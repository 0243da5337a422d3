"""Projecting conflicting gradients: neither loss gains along the other's loss.

Source: Yu et al., NeurIPS 2020, arXiv:2001.06782; as a balancer for unlearning in EUPMU, NeurIPS
    2025, arXiv:2510.22124.
Differs: two losses, forget and retain, so no order of projections is drawn; batch norm stays
    frozen during it; the norm of a step's direction is cut at 1.
Cost: per step one forward and backward pass over a forget and a retain batch, ``epochs`` passes
    over the retain set at most; two copies of the gradient, and momentum.
Promise: approximate. The two losses weigh alike; nothing bounds what the retain set loses.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import nn

from ..problem import Problem
from . import _surgery
from ._descent import LARGEST_GRADIENT, Plan, rate
from ._registry import Need, unlearners
from ._surgery import Losses, SurgeryOptions, explicit


class PcgradConfig(SurgeryOptions):
    """Step along both gradients, each without its part that conflicts with the other."""

    name: Literal["pcgrad"] = "pcgrad"

    needs: ClassVar[tuple[Need, ...]] = ("retain",)
    source: ClassVar[str] = "Yu et al., NeurIPS 2020, arXiv:2001.06782"


@unlearners
def pcgrad(problem: Problem, config: PcgradConfig) -> nn.Module:
    """Train, and return, ``problem.model``.

    Raises:
        MissingEvidence: without a retain set, or without the tuning records of a forget loss.
        Infeasible: if the forget loss has nowhere to go.
    """
    losses = Losses(problem, config.forget_loss)
    plan = Plan(
        epochs=config.epochs,
        lr=rate(problem, config.lr, sgd=0.01, adamw=1e-4),
        pace="retain",
        clip=LARGEST_GRADIENT,
        stop=config.stop,
    )
    return explicit(problem, losses, _surgery.pcgrad, plan)
