"""The only training loop in the house."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from . import weights
from .data import Records, num_batches
from .determinism import generator, seed_everything
from .device import autocast
from .errors import Diverged, InvalidInput
from .masks import Masks, apply_masks
from .recipe import SGD, Recipe, rate_factor
from .report import Progress, no_progress
from .smallmaps import dense_small_maps

__all__ = ["ExtraLoss", "Monitor", "Recipe", "fit"]

ExtraLoss = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]
"""Called with model, inputs, labels and logits; its result is added to the loss."""

_TICK_SECONDS = 0.5


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
    after_step: Callable[[int, float], None] | None = None,
    progress: Progress = no_progress,
    check_time: Callable[[], None] | None = None,
) -> nn.Module:
    """Train ``model`` in place, and return it in eval mode on ``device``.

    Parameters that need no gradient stay as they are. The batches of an epoch are of like size: a
    last batch of a few records would throw batch norm off, and with it the training.

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
        after_step: called with the number of steps done and the rate of the last one.
        progress: told about twice a second.
        check_time: called before each step; raises to stop.

    Raises:
        Diverged: if a loss or a weight is not finite.
        ValueError: if ``epochs`` or ``lr`` is not above zero.
        InvalidInput: ``retain_set_too_small`` without records, or with one and batch norm;
            ``recipe_invalid`` if the recipe does not fit network or records.
    """
    _check(model, records, recipe)
    run = _Run(recipe, len(records), epochs, lr)
    seed_everything(seed)
    shuffle = generator(seed)
    model.to(device).train()
    apply_masks(model, masks)
    if records.images.ndim == 4:
        model.to(memory_format=torch.channels_last)
        records = _near(records, device)
    optimizer = run.optimizer(model)
    monitor = Monitor(progress, run.num_steps)
    with dense_small_maps(model):
        for _ in range(run.epochs):
            for x, y in records.batches(
                recipe.batch_size,
                device,
                generator=shuffle,
                augment=recipe.augment,
                even=True,
            ):
                if check_time is not None:
                    check_time()
                run.set_rate(optimizer, monitor.step)
                with autocast(device, recipe.precision):
                    logits = model(x)
                    loss = F.cross_entropy(logits, y, label_smoothing=recipe.label_smoothing)
                    if extra_loss is not None:
                        loss = loss + extra_loss(model, x, y, logits)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                apply_masks(model, masks)
                if after_step is not None:
                    after_step(monitor.step + 1, run.rate)
                monitor.tick(loss)
    monitor.end()
    if broken := weights.non_finite(model):
        raise Diverged(f"training left {len(broken)} tensors with NaN or infinity")
    return model.eval()


class _Run:
    """Steps and rates of one training."""

    def __init__(
        self, recipe: Recipe, num_records: int, epochs: int | None, lr: float | None
    ) -> None:
        self.recipe = recipe
        self.epochs = recipe.epochs if epochs is None else epochs
        self.lr = recipe.optimizer.lr if lr is None else lr
        if self.epochs < 1 or self.lr <= 0:
            raise ValueError("epochs and lr must be above zero")
        self.num_steps = self.epochs * num_batches(num_records, recipe.batch_size)
        self.rate = self.lr

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        options = self.recipe.optimizer
        parameters = [p for p in model.parameters() if p.requires_grad]
        if isinstance(options, SGD):
            return torch.optim.SGD(
                parameters,
                lr=self.lr,
                momentum=options.momentum,
                nesterov=options.nesterov,
                weight_decay=options.weight_decay,
                fused=True,
            )
        return torch.optim.AdamW(
            parameters,
            lr=self.lr,
            betas=(options.beta1, options.beta2),
            weight_decay=options.weight_decay,
            fused=True,
        )

    def set_rate(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        factor = rate_factor(self.recipe.schedule, step, self.num_steps, self.epochs)
        self.rate = self.lr * factor
        for group in optimizer.param_groups:
            group["lr"] = self.rate


class Monitor:
    """Looks at the loss about twice a second, so that no step waits for it."""

    def __init__(self, progress: Progress, num_steps: int) -> None:
        self.progress, self.num_steps = progress, num_steps
        self.step = 0
        self._last = time.monotonic()
        self._sum: Tensor | None = None
        self._count = 0
        self._mean = math.nan

    def tick(self, loss: Tensor) -> None:
        """Count a step with its loss; raise Diverged if the losses since the last look are not
        finite."""
        self.step += 1
        self._count += 1
        self._sum = loss.detach() if self._sum is None else self._sum + loss.detach()
        if time.monotonic() - self._last >= _TICK_SECONDS:
            self._tell()

    def end(self) -> None:
        """Look at what has not been looked at."""
        self._tell()

    def _tell(self) -> None:
        if self._sum is not None:
            self._mean = float(self._sum) / self._count
            self._sum, self._count = None, 0
            if not math.isfinite(self._mean):
                raise Diverged(f"the loss is not finite at step {self.step} of {self.num_steps}")
        self._last = time.monotonic()
        self.progress(self.step / self.num_steps, {"loss": self._mean})


def _check(model: nn.Module, records: Records, recipe: Recipe) -> None:
    batchnorm = any(isinstance(module, _BatchNorm) for module in model.modules())
    if len(records) == 0 or (batchnorm and len(records) == 1):
        raise InvalidInput(
            "retain_set_too_small", f"{len(records)} records are too few to train on"
        )
    if batchnorm and recipe.batch_size == 1:
        raise InvalidInput("recipe_invalid", "batch norm can't be trained one record at a time")
    if recipe.augment and records.images.ndim != 4:
        raise InvalidInput("recipe_invalid", "augmentation is for images, not for features")


def _near(records: Records, device: torch.device) -> Records:
    """Put images beside the model where they take at most half of the free memory there."""
    if device.type != "cuda":
        return records
    free, _ = torch.cuda.mem_get_info(device)
    return records.to(device) if records.images.nbytes < free // 2 else records
