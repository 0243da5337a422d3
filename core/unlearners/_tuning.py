"""Going on with training on the retain set: what fine-tuning and its sparse form share."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

from torch import nn

from .. import batchnorm
from ..data import Augmentation
from ..problem import Problem
from ..recipe import SGD, Constant, OneCycle, Recipe
from ..training import ExtraLoss, fit
from ._batchnorm import settle
from ._descent import need_retain

MOMENTUM = 0.9


def tune(
    problem: Problem,
    *,
    epochs: int,
    lr: float,
    cycle: bool = False,
    augment: tuple[Augmentation, ...] | None = None,
    extra_loss: ExtraLoss | None = None,
    on_start: Callable[[int], None] | None = None,
    after_step: Callable[[int, float], None] | None = None,
) -> nn.Module:
    """Train ``problem.model`` in place on the retain set, settle its batch norm, and return it.

    Args:
        problem: what to unlearn.
        epochs: passes over the retain set.
        lr: rate of SGD with momentum 0.9; constant, or the peak of a cycle.
        cycle: up to the peak and down to almost nothing, in batches of the recipe's size.
        augment: random changes of the images; None takes the recipe's.
        extra_loss: as for ``core.training.fit``.
        on_start: as for ``core.training.fit``.
        after_step: as for ``core.training.fit``; called once pruned weights are zero again.

    Raises:
        MissingEvidence: without a retain set.
        Interrupted: if the problem's keeper was asked to end, and has the state.
        Diverged: if a loss or a weight is not finite.
    """
    retain = need_retain(problem)
    frozen = problem.bn_policy == "frozen"
    with batchnorm.frozen(problem.model) if frozen else nullcontext():
        model = fit(
            problem.model,
            retain,
            _recipe(problem, epochs, lr, cycle=cycle, augment=augment),
            seed=problem.seed,
            device=problem.device,
            extra_loss=extra_loss,
            masks=problem.masks,
            on_start=on_start,
            after_step=after_step,
            progress=problem.progress,
            check_time=problem.check_time,
            keeper=problem.keeper,
            team=problem.team,
        )
    settle(problem, model)
    return model


def _recipe(
    problem: Problem,
    epochs: int,
    lr: float,
    *,
    cycle: bool,
    augment: tuple[Augmentation, ...] | None,
) -> Recipe:
    """Keep what else the parent's recipe says, where it is known."""
    known = problem.recipe
    if augment is None:
        augment = known.augment if known is not None else ()
    return Recipe(
        epochs=epochs,
        batch_size=known.batch_size if cycle and known is not None else problem.batch_size,
        optimizer=SGD(
            lr=lr,
            momentum=MOMENTUM,
            weight_decay=known.optimizer.weight_decay
            if known is not None and isinstance(known.optimizer, SGD)
            else 0.0,
        ),
        schedule=OneCycle() if cycle else Constant(),
        augment=augment,
        precision=known.precision if known is not None else "fp32",
        label_smoothing=known.label_smoothing if known is not None else 0.0,
    )
