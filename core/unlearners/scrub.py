"""SCRUB: a student that disobeys its teacher on the forget set and obeys it elsewhere.

Source: Kurmanji et al., NeurIPS 2023, arXiv:2302.09880, with its rewinding (SCRUB+R); settings as
    in the code of Cadet et al., arXiv:2410.01276.
Differs: the divergence on the forget set is raised up to a bound only, record by record; without
    one it goes on until the network breaks. Gradients are cut to a norm of one. The rate is
    constant. Rewinding matches never-seen records of the forget set's own class mix.
Cost: ``max_epochs`` passes over the forget set and ``epochs`` over the retain set, each with a
    forward pass of the teacher; momentum, one copy as the teacher and, to rewind, one per epoch.
Promise: approximate. Rewinding chooses the epoch whose error on the forget set is closest to what
    the last one has on tuning records, so that the forget set is not told apart by its errors.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..distillation import divergence
from ..problem import Problem
from ..weights import frozen_copy
from ._batchnorm import settle
from ._descent import LARGEST_GRADIENT, Pair, Plan, descend, need_retain, rate
from ._guard import ALLOWANCE, Guard
from ._registry import Need, UnlearnerOptions, unlearners


class ScrubConfig(UnlearnerOptions):
    """Disobey the parent on the forget set, obey it on the retain set, rewind to the best epoch."""

    name: Literal["scrub"] = "scrub"
    epochs: int = Field(10, ge=1, le=30, description="Passes over the retain set.")
    max_epochs: int = Field(
        3, ge=1, le=30, description="Of these, how many start with a pass over the forget set."
    )
    lr: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Learning rate. Left out: one that suits the optimizer of the recipe.",
    )
    alpha: float = Field(
        0.5, ge=0, le=100, description="Weight of the divergence from the parent on retained data."
    )
    gamma: float = Field(
        1.0, ge=0, le=100, description="Weight of the cross-entropy on retained data."
    )
    temperature: float = Field(
        2.0, ge=0.1, le=100, description="Divides the logits of parent and student."
    )
    rewind: bool = Field(
        True,
        description="Go back to the epoch whose accuracy on the forget set is closest to that on "
        "never-seen tuning records (records), or is at most chance (a class).",
    )

    needs: ClassVar[tuple[Need, ...]] = ("retain",)
    source: ClassVar[str] = "Kurmanji et al., NeurIPS 2023, arXiv:2302.09880"


@unlearners
def scrub(problem: Problem, config: ScrubConfig) -> nn.Module:
    """Train, and return, ``problem.model``.

    Raises:
        MissingEvidence: without a retain set.
    """
    need_retain(problem)
    teacher = frozen_copy(problem.model).to(problem.device)
    most = most_divergence(problem.num_classes) * config.temperature**2
    history = _History(problem, config)

    def gradients(pair: Pair) -> Tensor:
        if len(pair.forget[1]):
            if pair.step >= pair.of * config.max_epochs / config.epochs:
                return torch.zeros((), device=problem.device)
            x = pair.forget[0]
            apart = divergence(problem.model(x), teacher(x), config.temperature)
            loss = -apart.clamp(max=most).mean()
        else:
            x, y = pair.retain
            logits = problem.model(x)
            near = divergence(logits, teacher(x), config.temperature).mean()
            loss = config.alpha * near + config.gamma * F.cross_entropy(logits, y)
        loss.backward()
        return loss.detach()

    plan = Plan(
        epochs=config.epochs,
        lr=rate(problem, config.lr, sgd=0.05, adamw=5e-4),
        pace="turns",
        clip=LARGEST_GRADIENT,
        stop=False,
    )
    descend(problem, gradients, plan, after_step=history.look)
    history.rewind()
    return problem.model


def most_divergence(num_classes: int) -> float:
    """Divergence beyond which a record has been disobeyed enough, in nats.

    A sure teacher is ln C from a student without an opinion; a nat more is a student that is surely
    of another one.
    """
    return math.log(num_classes) + 1


class _History:
    """What the model was after each epoch, and how much of the forget set it recognised."""

    def __init__(self, problem: Problem, config: ScrubConfig) -> None:
        self._problem, self._epochs = problem, config.epochs
        wanted = config.rewind and problem.tuning is not None
        self._guard = Guard(problem, 1.0) if wanted else None
        if config.rewind and not wanted:
            problem.tried.append({"rewind": "never: there are no tuning records"})
        self._states: list[dict[str, Tensor]] = []
        self._accuracies: list[float] = []
        self._target = math.nan

    def look(self, pair: Pair) -> None:
        """Keep a copy at the end of an epoch."""
        if self._guard is None or (pair.step + 1) % (pair.of // self._epochs):
            return
        model = self._problem.model
        settle(self._problem, model)
        found = self._guard.measure(model)
        self._accuracies.append(found.forget_accuracy)
        self._target = found.target
        self._states.append(
            {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
        )
        told: dict[str, Any] = {"epoch": len(self._states), **found.as_dict()}
        self._problem.tried.append(told)

    def rewind(self) -> None:
        """Go back to the chosen epoch; among equals to the last one."""
        if self._guard is None:
            return
        problem = self._problem
        one_sided = problem.selector == "class" or problem.purpose == "poison_removal"
        target = self._target if one_sided else self._target - ALLOWANCE
        distances = [closeness(found, target, one_sided=one_sided) for found in self._accuracies]
        best = max(i for i, distance in enumerate(distances) if distance == min(distances))
        problem.tried.append({"rewound_to_epoch": best + 1, "target": target})
        if best + 1 < self._epochs:
            problem.model.load_state_dict(self._states[best])
            settle(problem, problem.model)


def closeness(accuracy: float, target: float, *, one_sided: bool) -> float:
    """Distance from the target; of a class and of poison nothing need be recognised."""
    return max(0.0, accuracy - target) if one_sided else abs(accuracy - target)
