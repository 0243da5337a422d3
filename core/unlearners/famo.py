"""Fast adaptive multitask optimisation: weights so that neither loss falls behind in proportion.

Source: Liu et al., NeurIPS 2023, arXiv:2306.03792 (FAMO); as a balancer for unlearning in EUPMU,
    NeurIPS 2025, arXiv:2510.22124.
Differs: losses below 1e-6 count as that; both values of a loss are for the same batch, statistics
    and dropout; batch norm stays frozen during it; the norm of a step's gradient is cut at 1.
Cost: per step one forward and backward pass over a forget and a retain batch and one more forward
    pass over both, ``epochs`` passes over the retain set at most; momentum, one copy of the model.
Promise: approximate. A small retain loss takes most of the weight, so it forgets slowly where the
    parent knows the retain set by heart.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..problem import Problem
from ._descent import LARGEST_GRADIENT, Pair, Plan, descend, rate
from ._registry import Need, unlearners
from ._surgery import Losses, SurgeryOptions

SMALLEST_LOSS = 1e-6


class FamoConfig(SurgeryOptions):
    """Descend both losses so that their logarithms fall at the same pace."""

    name: Literal["famo"] = "famo"
    weight_lr: float = Field(
        0.025, gt=0, le=10, description="Learning rate of the two weights (Adam)."
    )
    weight_decay: float = Field(
        0.001, ge=0, le=1, description="Pull of the two weights towards equal ones."
    )

    needs: ClassVar[tuple[Need, ...]] = ("retain",)
    source: ClassVar[str] = "Liu et al., NeurIPS 2023, arXiv:2306.03792"


@unlearners
def famo(problem: Problem, config: FamoConfig) -> nn.Module:
    """Train, and return, ``problem.model``.

    Raises:
        MissingEvidence: without a retain set, or without the tuning records of a forget loss.
        Infeasible: if the forget loss has nowhere to go.
    """
    losses = Losses(problem, config.forget_loss)
    balance = Balance(config.weight_lr, config.weight_decay, problem.device)

    def gradients(pair: Pair) -> Tensor:
        both = torch.stack([losses.forget(pair), losses.retain(pair)])
        balance.loss(both).backward()
        return both.detach().sum()

    def learn(pair: Pair) -> None:
        balance.learn(torch.stack(losses.again(losses.forget, losses.retain, pair=pair)))

    plan = Plan(
        epochs=config.epochs,
        lr=rate(problem, config.lr, sgd=0.01, adamw=1e-4),
        pace="retain",
        clip=LARGEST_GRADIENT,
        stop=config.stop,
    )
    model = descend(problem, gradients, plan, forget=losses.records, after_step=learn)
    problem.tried.append({"weight_of_forget_loss": float(balance.shares()[0].detach())})
    return model


class Balance:
    """Weights of the two losses, from how their logarithms moved."""

    def __init__(self, lr: float, decay: float, device: torch.device | None = None) -> None:
        self._raw = torch.zeros(2, device=device, requires_grad=True)
        self._optimizer = torch.optim.Adam([self._raw], lr=lr, weight_decay=decay)
        self._before = torch.zeros(2, device=device)

    def shares(self) -> Tensor:
        """Present weights of the logarithms of the losses, float32[2], sum 1."""
        return self._raw.softmax(dim=0)

    def loss(self, both: Tensor) -> Tensor:
        """Return the scalar whose gradient is the convex sum of those of ``both``, float[2]."""
        both = both.clamp(min=SMALLEST_LOSS)
        logs, shares = both.log(), self.shares().detach()
        self._before = logs.detach()
        return (shares * logs).sum() / (shares / both.detach()).sum()

    def learn(self, both: Tensor) -> None:
        """Give more weight to the loss that fell less."""
        fell = self._before - both.clamp(min=SMALLEST_LOSS).log()
        [self._raw.grad] = torch.autograd.grad(self.shares(), self._raw, fell)
        self._optimizer.step()
