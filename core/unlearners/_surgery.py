"""Two gradients, one step: what unlearners that balance a forget and a retain loss share.

Every direction here lies in the plane of the two gradients, so a rule is a function of their three
inner products and answers with two weights: the step is against a * g_forget + b * g_retain.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..device import autocast
from ..forget_losses import ForgetLossName, prepare
from ..problem import Problem
from ._descent import (
    DescentOptions,
    Pair,
    Plan,
    descend,
    mask_gradients,
    need_retain,
    precision,
)
from ._registry import Need


class SurgeryOptions(DescentOptions):
    """Options of every unlearner that balances a forget and a retain loss."""

    epochs: int = Field(5, ge=1, le=100, description="Passes over the retain set at most.")
    forget_loss: ForgetLossName = Field(
        "ascent_bounded",
        description="What to ask of the forget records: a loss no better than a guess "
        "(ascent_bounded), a fixed wrong label (random_label), no preference (uniform), or what "
        "the parent says of never-seen tuning records of the same class, on average (unseen) or "
        "of one of them (unseen_record).",
    )

    @property
    def all_needs(self) -> tuple[Need, ...]:
        """What the parent says of never-seen records takes such records."""
        is_compared = self.forget_loss in ("unseen", "unseen_record")
        return (*self.needs, "holdout") if is_compared else self.needs


class Products(NamedTuple):
    """Inner products of the two gradients."""

    forget: float
    """g_forget . g_forget"""
    cross: float
    """g_forget . g_retain"""
    retain: float
    """g_retain . g_retain"""


Weights = tuple[float, float]
"""Of the forget and of the retain gradient."""

Rule = Callable[[Products], Weights]


def products(forget: list[Tensor], retain: list[Tensor]) -> Products:
    """Inner products over all parameters; waits for the device once."""
    with torch.no_grad():
        pairs = (forget, forget), (forget, retain), (retain, retain)
        sums = [torch.stack([_dot(a, b) for a, b in zip(*p, strict=True)]).sum() for p in pairs]
        return Products(*torch.stack(sums).tolist())


def unilateral(of: Products, eps: float = 0.0) -> Weights:
    """Nearest direction to g_forget whose first-order growth of the retain loss is at most eps.

    Example:
        >>> unilateral(Products(forget=1, cross=-1, retain=2))
        (1.0, 0.5)
        >>> unilateral(Products(forget=1, cross=-1, retain=2), eps=1.0)
        (1.0, 0.0)
    """
    conflict = -of.cross - eps
    return 1.0, conflict / of.retain if conflict > 0 and of.retain > 0 else 0.0


def pcgrad(of: Products) -> Weights:
    """Where they conflict, each gradient without its part along the other; their sum.

    Example:
        >>> pcgrad(Products(forget=1, cross=-1, retain=2))
        (2.0, 1.5)
    """
    if of.cross >= 0 or of.forget <= 0 or of.retain <= 0:
        return 1.0, 1.0
    return 1.0 - of.cross / of.forget, 1.0 - of.cross / of.retain


def nash(of: Products) -> Weights:
    """Nash bargaining: both losses gain alike, relative to the norms of their gradients.

    The direction has norm sqrt(2) whatever the gradients are. Where they are opposite there is no
    bargain, where one is zero there is nothing to bargain about: the other one, normalised.

    Example:
        >>> nash(Products(forget=4, cross=0, retain=1))
        (0.5, 1.0)
    """
    norms = math.sqrt(of.forget), math.sqrt(of.retain)
    if min(norms) <= 0:
        forget, retain = (math.sqrt(2) / n if n > 0 else 0.0 for n in norms)
        return forget, retain
    both = 1.0 + of.cross / (norms[0] * norms[1])
    if both <= _OPPOSITE:
        return 0.0, 0.0
    return 1 / (norms[0] * math.sqrt(both)), 1 / (norms[1] * math.sqrt(both))


_OPPOSITE = 1e-6
"""1 + cosine below which gradients in float32 are taken as opposite."""


class Losses:
    """Both losses of a pair of batches.

    The same pair meets the same dropout however often it is asked for, and nothing is drawn from
    the global generators: two values at two points differ by the move alone.

    Args:
        problem: its model is what is measured.
        forget_loss: for the forget batch; the retain batch has the cross-entropy.
    """

    def __init__(self, problem: Problem, forget_loss: ForgetLossName) -> None:
        need_retain(problem)
        self._problem = problem
        self._forget = prepare(forget_loss, problem)
        self.records = self._forget.records
        """Forget records to go through: labels are what the forget loss expects."""

    def forget(self, pair: Pair) -> Tensor:
        """Forget loss at the present weights, a scalar."""
        return self._forget.of(self._logits(pair.forget[0], 2 * pair.step), pair.forget[1])

    def retain(self, pair: Pair) -> Tensor:
        """Retain loss at the present weights, a scalar."""
        return F.cross_entropy(self._logits(pair.retain[0], 2 * pair.step + 1), pair.retain[1])

    def again(self, *losses: Callable[[Pair], Tensor], pair: Pair) -> list[Tensor]:
        """Losses once more after the weights moved: same precision, no gradient."""
        with torch.no_grad(), autocast(self._problem.device, precision(self._problem)):
            return [loss(pair) for loss in losses]

    def _logits(self, x: Tensor, draw: int) -> Tensor:
        device = self._problem.device
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed((self._problem.seed + draw) % 2**63)
            logits: Tensor = self._problem.model(x)
        return logits.float()


def explicit(
    problem: Problem, losses: Losses, rule: Rule, plan: Plan, *, shrink: bool = False
) -> nn.Module:
    """Descend along the direction that ``rule`` chooses, both gradients taken apart.

    The batches are apart, so two backward passes cost what one over the sum of the losses does.
    One more copy of the gradient is held. ``shrink`` scales the direction linearly from one at the
    first step to zero after the last.
    """
    parameters = trainable(problem.model)

    def gradients(pair: Pair) -> Tensor:
        retain_loss = losses.retain(pair)
        retain_loss.backward()
        mask_gradients(problem)
        retain = take_gradients(parameters)
        forget_loss = losses.forget(pair)
        forget_loss.backward()
        mask_gradients(problem)
        forget = take_gradients(parameters)
        a, b = rule(products(forget, retain))
        scale = 1.0 - pair.step / pair.of if shrink else 1.0
        combine(parameters, forget, retain, (scale * a, scale * b))
        return forget_loss.detach() + retain_loss.detach()

    return descend(problem, gradients, plan, forget=losses.records)


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """Parameters that take part."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


@torch.no_grad()
def take_gradients(parameters: list[nn.Parameter]) -> list[Tensor]:
    """Return the gradients and leave none behind; zero where the loss did not reach."""
    taken = []
    for parameter in parameters:
        gradient = parameter.grad
        taken.append(torch.zeros_like(parameter) if gradient is None else gradient)
        parameter.grad = None
    return taken


@torch.no_grad()
def combine(
    parameters: list[nn.Parameter], forget: list[Tensor], retain: list[Tensor], weights: Weights
) -> None:
    """Set ``.grad`` to the weighted sum, in the memory of the forget gradient."""
    a, b = weights
    for parameter, g_forget, g_retain in zip(parameters, forget, retain, strict=True):
        if a != 1.0:
            g_forget.mul_(a)
        if b != 0.0:
            g_forget.add_(g_retain, alpha=b)
        parameter.grad = g_forget


def squared_norm(tensors: list[Tensor]) -> Tensor:
    """Sum of squares over all tensors, a scalar on their device."""
    with torch.no_grad():
        return torch.stack([_dot(t, t) for t in tensors]).sum()


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.dot(a.flatten(), b.flatten())
