"""Implicit gradient surgery: the multiplier of the retain loss follows what each step did to it.

Source: Efficient utility-preserving machine unlearning (EUPMU), NeurIPS 2025, arXiv:2510.22124.
Differs: ``eps`` >= 0 tolerates growth (the reference code counts the other way round); the
    multiplier is projected at zero after every step, so that it can't wind up; the dual step is
    divided by the squared norm of the retain gradient, measured on one step in ten and bounded by
    the signal in between; the signal is divided by the way the weights really went; both weights
    are divided by 1 + multiplier, so that a large one can't overshoot; both values of the retain
    loss are for the same batch, statistics and dropout; forget and retain batches are drawn apart;
    batch norm stays frozen; plain SGD without momentum (Adam where the parent was trained with
    it); the norm of a step's gradient is cut at 10; the forget loss is a bounded ascent unless
    another is asked for. ``fast`` compares running means of the losses of different batches.
Cost: per step one forward and backward pass over a forget and a retain batch and one more forward
    pass over the retain batch (not with ``fast``), ``epochs`` passes over the retain set at most;
    one copy of the gradient, with Adam one of the weights.
Promise: approximate. Growth of the retain loss is answered in the steps that follow, not forbidden.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ..problem import Problem
from ..registry import misfit
from ._descent import (
    LARGEST_GRADIENT_ALONE,
    Pair,
    Plan,
    descend,
    mask_gradients,
    rate,
    uses_sgd,
)
from ._dual import Dual, RunningNorm
from ._registry import Need, unlearners
from ._surgery import Losses, SurgeryOptions, squared_norm, trainable

NORM_EVERY = 10
"""Steps from one exact norm of the retain gradient to the next."""

SMALLEST_LOSS = 1e-6
"""Losses below count as this before a logarithm is taken."""

SMOOTHING = 0.9
"""Of the retain loss from batch to batch, with ``fast``."""


class EupmuConfig(SurgeryOptions):
    """Step along the forget loss plus a multiple of the retain loss that answers its growth."""

    name: Literal["eupmu"] = "eupmu"
    eps: float = Field(
        0.0,
        ge=0,
        le=10,
        description="Growth of the retain loss that is tolerated per step, in nats per unit of "
        "learning rate.",
    )
    dual_lr: float = Field(
        0.3,
        gt=0,
        le=10,
        description="Step size of the multiplier; plain, in units of the inverse squared norm of "
        "the retain gradient, where 2 and more oscillates.",
    )
    dual_opt: Literal["plain", "adam"] = Field(
        "plain", description="Optimizer of the multiplier; adam follows signs more than sizes."
    )
    scale: Literal["none", "log"] = Field(
        "none",
        description="Whether to balance the losses or their logarithms; log wants another forget "
        "loss than ascent_bounded.",
    )
    lambda0: float = Field(0.0, ge=0, le=100, description="First value of the multiplier.")
    fast: bool = Field(
        False,
        description="Do without the second forward pass: compare with the loss of the next retain "
        "batch, which is cheaper and noisier.",
    )

    needs: ClassVar[tuple[Need, ...]] = ("retain",)
    source: ClassVar[str] = "EUPMU, NeurIPS 2025, arXiv:2510.22124"

    @model_validator(mode="after")
    def _log_fits(self) -> Self:
        if self.scale == "log" and self.forget_loss == "ascent_bounded":
            raise misfit(
                self,
                "scale",
                "scale log does not go with forget_loss ascent_bounded, whose gradient does not "
                "fade with it: divided by a loss near zero it would have no bound",
            )
        return self


@unlearners
def eupmu(problem: Problem, config: EupmuConfig) -> nn.Module:
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
        momentum=0.0,
        stop=config.stop,
    )
    steps = _Steps(problem, config, losses, plan.lr)
    model = descend(problem, steps.gradients, plan, forget=losses.records, after_step=steps.follow)
    problem.tried.append(steps.summary())
    return model


class _Steps:
    """What is remembered from step to step."""

    def __init__(self, problem: Problem, config: EupmuConfig, losses: Losses, lr: float) -> None:
        problem.model.to(problem.device)
        self._problem, self._config, self._losses, self._lr = problem, config, losses, lr
        self._parameters = trainable(problem.model)
        self._dual = Dual(
            config.lambda0, config.dual_lr, config.eps, config.dual_opt, problem.device
        )
        self._norm = RunningNorm(problem.device)
        self._retain = torch.zeros(())
        self._cut = torch.ones(())
        """What is left of the gradient's norm; the signal is divided by the way really gone."""
        self._start: list[Tensor] = []
        self._mean: Tensor | None = None
        self._compared = -1
        """The last step that ``_mean`` knows: where memory is short, one is taken twice."""

    def gradients(self, pair: Pair) -> Tensor:
        """Set the gradient of (forget + multiplier * retain) / (1 + multiplier)."""
        retain = self._scaled(self._losses.retain(pair))
        if self._config.fast and pair.step != self._compared:
            self._compare(retain.detach())
            self._compared = pair.step
        of_forget = 1 / (1 + self._dual.value)
        of_retain = self._dual.value * of_forget
        forget = self._scaled(self._losses.forget(pair))
        if pair.step % NORM_EVERY == 0:
            self._measure(retain, of_retain)
            (of_forget * forget).backward()
        else:
            (of_forget * forget + of_retain * retain).backward()
        mask_gradients(self._problem)
        norm = nn.utils.clip_grad_norm_(self._parameters, LARGEST_GRADIENT_ALONE)
        self._cut = (LARGEST_GRADIENT_ALONE / norm).clamp(max=1)
        self._retain = retain.detach()
        if not uses_sgd(self._problem):
            self._start = [p.detach().clone() for p in self._parameters]
        return forget.detach() + retain.detach()

    def follow(self, pair: Pair) -> None:
        """Tell the multiplier what the step did to the loss of its retain batch."""
        self._direction, self._way = self._moved()
        if not self._config.fast:
            [after] = self._losses.again(self._losses.retain, pair=pair)
            self._learn(self._scaled(after) - self._retain)

    def summary(self) -> dict[str, float]:
        """What to keep of the multiplier."""
        return {"lambda": float(self._dual.value), "largest_lambda": float(self._dual.largest)}

    def _measure(self, retain: Tensor, weight: Tensor) -> None:
        """Take the retain gradient alone, which costs a pass over the parameters and no more."""
        retain.backward()
        mask_gradients(self._problem)
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        self._norm.exact(squared_norm(gradients))
        for gradient in gradients:
            gradient.mul_(weight)

    @torch.no_grad()
    def _moved(self) -> tuple[Tensor, Tensor]:
        """Squared norm of the unscaled direction, and step size: way gone over that norm."""
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        scale = (1 + self._dual.value) / self._cut
        scaled = squared_norm(gradients).double()
        if uses_sgd(self._problem):
            return scaled * scale.square(), self._lr / scale
        gone = squared_norm([p - s for p, s in zip(self._parameters, self._start, strict=True)])
        way = (gone.double() / scaled.clamp(min=1e-30)).sqrt()
        return scaled * scale.square(), way / scale

    @torch.no_grad()
    def _compare(self, retain: Tensor) -> None:
        """Compare running means before and after this batch, for want of a second look."""
        before = self._mean
        self._mean = retain if before is None else torch.lerp(retain, before, SMOOTHING)
        if before is not None:
            self._learn(self._mean - before)

    def _learn(self, difference: Tensor) -> None:
        growth = difference.double() / self._way.clamp(min=1e-30)
        self._norm.bound(growth, self._direction)
        self._dual.step(growth, self._norm.value)

    def _scaled(self, loss: Tensor) -> Tensor:
        return loss if self._config.scale == "none" else loss.clamp(min=SMALLEST_LOSS).log()
