"""The only training loop in the house."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from . import batchnorm, weights
from .assist import Work
from .checkpoints import Keeper
from .course import Course, Run
from .data import Records
from .determinism import generator, seed_everything
from .errors import Diverged, InvalidInput
from .masks import Masks, apply_masks
from .recipe import Recipe
from .report import Progress, no_progress
from .smallmaps import dense_small_maps
from .step import ExtraLoss, Step
from .team import Team, decide, gathered

__all__ = ["ExtraLoss", "Monitor", "Recipe", "fit"]

_TICK_SECONDS = 0.5

EXPLODED = 100.0
"""A loss of so many times the first one, or that of a guess where that is more, is no training."""

_PATIENCE = 0.1
_SMOOTHING = 0.1


def fit(
    model: nn.Module,
    records: Records,
    recipe: Recipe,
    *,
    seed: int,
    device: torch.device,
    epochs: int | None = None,
    lr: float | None = None,
    extra_loss: ExtraLoss | None = None,
    masks: Masks | None = None,
    on_start: Callable[[int], None] | None = None,
    after_step: Callable[[int, float], None] | None = None,
    progress: Progress = no_progress,
    check_time: Callable[[], None] | None = None,
    keeper: Keeper | None = None,
    team: Team | None = None,
) -> nn.Module:
    """Train ``model`` in place, and return it in eval mode on ``device``.

    Parameters that need no gradient stay as they are. The batches of an epoch are of like size: a
    last batch of a few records would throw batch norm off, and with it the training.

    Where the device has too little memory for a batch, it is learned in pieces from then on, with
    the gradient of the whole; batch norm then sees the pieces.

    Where several processes share the training, each step is that of the whole batch, but batch norm
    and dropout see shares; running statistics are the mean of what the processes saw.

    Args:
        model: the network to train, freshly built or not.
        records: training records.
        recipe: everything else there is to know.
        seed: of order, augmentation and dropout; ``recipe.seed`` is only what was used once.
        device: where to train.
        epochs: overrides the recipe's, the schedule is stretched or shrunk to it.
        lr: overrides the recipe's peak rate.
        extra_loss: added to the cross-entropy of each batch.
        masks: of a pruned model; zeros from the start, and after every step.
        on_start: called once, with the number of steps that were done before an interruption.
        after_step: called with the number of steps done and the rate of the last one. Other
            processes of a team do not call it, so with one it must leave the weights alone.
        progress: told about twice a second.
        check_time: called before each step; raises to stop.
        keeper: keeps the state every so often; what it has of this very training is gone on from,
            on the CPU with the same bits as without an interruption.
        team: how many processes may share the training; told how many did, and why not more. An
            ``extra_loss`` keeps it to one.

    Raises:
        Interrupted: if ``keeper`` was asked to end, and has the state.
        torch.OutOfMemoryError: if a sixteenth of a batch is still too much.
        ProcessDied: if a process of the team ended before its time.
        Diverged: if a loss or a weight is not finite, or the loss exploded.
        ValueError: if ``epochs`` or ``lr`` is not above zero.
        InvalidInput: ``retain_set_too_small`` without records, or with one and batch norm;
            ``recipe_invalid`` if the recipe does not fit network or records.
    """
    _check(model, records, recipe)
    run = Run(recipe, len(records), epochs, lr)
    seed_everything(seed)
    shuffle = generator(seed)
    model.to(device).train()
    apply_masks(model, masks)
    if records.images.ndim == 4:
        model.to(memory_format=torch.channels_last)
        records = _near(records, device)
    optimizer = run.optimizer(model)
    monitor = Monitor(progress, run.num_steps, int(records.labels.max()) + 1)
    course = Course(model, optimizer, shuffle, records, recipe, device)
    if keeper is not None:
        monitor.step = course.resume(keeper, run, seed)
        monitor.first = course.first_loss
    if on_start is not None:
        on_start(monitor.step)
    size = 1 if team is None else decide(team, course, extra_loss)

    def work(threads: int) -> Work:
        assert team is not None
        assert team.network is not None
        return Work.of(course, run, team.network, seed=seed, masks=masks or {}, threads=threads)

    with (
        gathered(size, work, device, check_time or (lambda: None)) as group,
        dense_small_maps(model),
        nullcontext() if keeper is None else keeper.training(),
    ):
        step = Step(model, optimizer, recipe, device, extra_loss, group)
        for x, y in course.batches(run.epochs, (0, size)):
            if check_time is not None:
                check_time()
            run.set_rate(optimizer, monitor.step)
            loss = step(x, y)
            apply_masks(model, masks)
            if after_step is not None:
                after_step(monitor.step + 1, run.rate)
            monitor.tick(loss)
            course.first_loss = monitor.first
            if keeper is not None and keeper.is_due:
                course.keep(keeper)
    monitor.end()
    if broken := weights.non_finite(model):
        raise Diverged(f"training left {len(broken)} tensors with NaN or infinity")
    return model.eval()


class Monitor:
    """Looks at the loss about twice a second, so that no step waits for it.

    It has exploded where its running mean is far above the first loss (``EXPLODED``): at the end,
    or for a tenth of the steps before; one bad batch is none. A loss that falls without bound, as
    that of an ascent does, is for the gates to judge.

    Args:
        progress: told at each look.
        num_steps: to be done in all.
        num_classes: the loss of a guess is the logarithm of it.
    """

    def __init__(self, progress: Progress, num_steps: int, num_classes: int) -> None:
        self.progress, self.num_steps = progress, num_steps
        self.step = 0
        self.first: Tensor | None = None
        """Loss of the very first step."""
        self._guess = math.log(max(2, num_classes))
        self._calm = 0
        self._level: Tensor | None = None
        self._last = time.monotonic()
        self._sum: Tensor | None = None
        self._count = 0
        self._mean = math.nan

    def tick(self, loss: Tensor) -> None:
        """Count a step with its loss; raise Diverged if the losses since the last look are not
        finite, or the loss exploded."""
        loss = loss.detach().float()
        self.step += 1
        self._count += 1
        self._sum = loss if self._sum is None else self._sum + loss
        self.first = loss if self.first is None else self.first
        # Not a mean since the last look: when that was is a matter of the clock.
        self._level = loss if self._level is None else self._level.lerp(loss, _SMOOTHING)
        if time.monotonic() - self._last >= _TICK_SECONDS:
            self._tell(patience=_PATIENCE * self.num_steps)

    def end(self) -> None:
        """Look at what has not been looked at."""
        self._tell(patience=0)

    def _tell(self, *, patience: float) -> None:
        if self._sum is not None:
            self._mean = float(self._sum) / self._count
            self._sum, self._count = None, 0
            if not math.isfinite(self._mean):
                raise Diverged(f"the loss is not finite at step {self.step} of {self.num_steps}")
        if self._level is not None and self.first is not None:
            self._judge(float(self._level), float(self.first), patience)
        self._last = time.monotonic()
        self.progress(self.step / self.num_steps, {"loss": self._mean})

    def _judge(self, level: float, first: float, patience: float) -> None:
        if level <= EXPLODED * max(first, self._guess):
            self._calm = self.step
        elif self.step - self._calm > patience:
            raise Diverged(
                f"the loss exploded: it is about {level:.3g} at step {self.step} of "
                f"{self.num_steps}, after {first:.3g} at the first"
            )


def _check(model: nn.Module, records: Records, recipe: Recipe) -> None:
    if len(records) == 0:
        raise InvalidInput("retain_set_too_small", "0 records are too few to train on")
    batchnorm.check_batches(model, len(records), recipe.batch_size)
    if recipe.augment and records.images.ndim != 4:
        raise InvalidInput("recipe_invalid", "augmentation is for images, not for features")


def _near(records: Records, device: torch.device) -> Records:
    """Put images beside the model where they take at most half of the free memory there."""
    if device.type != "cuda":
        return records
    free, _ = torch.cuda.mem_get_info(device)
    return records.to(device) if records.images.nbytes < free // 2 else records
