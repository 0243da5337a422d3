"""The only training loop in the house."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from . import weights
from .checkpoints import Keeper, State
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
_MOST_PIECES = 2**4
"""A batch for which the memory does not suffice is halved at most four times."""


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
    keeper: Keeper | None = None,
) -> nn.Module:
    """Train ``model`` in place, and return it in eval mode on ``device``.

    Parameters that need no gradient stay as they are. The batches of an epoch are of like size: a
    last batch of a few records would throw batch norm off, and with it the training.

    Where the device has too little memory for a batch, it is learned in pieces from then on, with
    the gradient of the whole; batch norm then sees the pieces.

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
        keeper: keeps the state every so often; what it has of this very training is gone on from,
            on the CPU with the same bits as without an interruption.

    Raises:
        Interrupted: if ``keeper`` was asked to end, and has the state.
        torch.OutOfMemoryError: if a sixteenth of a batch is still too much.
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
    step = _Step(model, optimizer, recipe, device, extra_loss)
    course = _Course(model, optimizer, shuffle, records, recipe, device)
    if keeper is not None:
        monitor.step = course.resume(keeper, run, seed)
    with dense_small_maps(model), nullcontext() if keeper is None else keeper.training():
        for x, y in course.batches(run.epochs):
            if check_time is not None:
                check_time()
            run.set_rate(optimizer, monitor.step)
            loss = step(x, y)
            apply_masks(model, masks)
            if after_step is not None:
                after_step(monitor.step + 1, run.rate)
            monitor.tick(loss)
            if keeper is not None and keeper.is_due:
                course.keep(keeper)
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


class _Step:
    """One step of the optimiser, in as few pieces of the batch as the memory allows."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        recipe: Recipe,
        device: torch.device,
        extra_loss: ExtraLoss | None,
    ) -> None:
        self.model, self.optimizer, self.recipe = model, optimizer, recipe
        self.device, self.extra_loss = device, extra_loss
        self.pieces = 1

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        while (loss := self._gradient(x, y)) is None:
            self.pieces *= 2
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        self.optimizer.step()
        return loss

    def _gradient(self, x: Tensor, y: Tensor) -> Tensor | None:
        """Compute the gradient and return the loss; None if there was too little memory."""
        self.optimizer.zero_grad(set_to_none=True)
        try:
            if self.pieces == 1:
                return self._backward(x, y, 1.0)
            parts = zip(x.tensor_split(self.pieces), y.tensor_split(self.pieces), strict=True)
            return torch.stack([self._backward(a, b, len(a) / len(x)) for a, b in parts]).sum()
        except torch.OutOfMemoryError:
            if self.pieces >= _MOST_PIECES or len(x) < 4 * self.pieces:
                raise
        return None

    def _backward(self, x: Tensor, y: Tensor, share: float) -> Tensor:
        with autocast(self.device, self.recipe.precision):
            logits = self.model(x)
            loss = F.cross_entropy(logits, y, label_smoothing=self.recipe.label_smoothing)
            if self.extra_loss is not None:
                loss = loss + self.extra_loss(self.model, x, y, logits)
        loss = loss if share == 1.0 else loss * share
        loss.backward()
        return loss.detach()


class _Course:
    """The way of a training through its data, which may begin where an earlier one was stopped."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        shuffle: torch.Generator,
        records: Records,
        recipe: Recipe,
        device: torch.device,
    ) -> None:
        self._model, self._optimizer, self._shuffle = model, optimizer, shuffle
        self._records, self._recipe, self._device = records, recipe, device
        self._epoch, self._position = 0, 0
        self._order = shuffle.get_state()
        """State of the generator at the start of the epoch at work."""
        self._fingerprint = ""

    def batches(self, epochs: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield what is left of all epochs."""
        while self._epoch < epochs:
            self._order = self._shuffle.get_state()
            found = self._records.batches(
                self._recipe.batch_size,
                self._device,
                generator=self._shuffle,
                augment=self._recipe.augment,
                even=True,
            )
            for batch in islice(found, self._position, None):
                self._position += 1
                yield batch
            self._epoch, self._position = self._epoch + 1, 0

    def resume(self, keeper: Keeper, run: _Run, seed: int) -> int:
        """Go to where ``keeper`` says that this training was; return the steps done by then."""
        self._fingerprint = _fingerprint(self._model, self._records, run, seed)
        state = keeper.restore(self._fingerprint)
        if state is None:
            return 0
        tensors = state.tensors
        model = self._model.state_dict()
        for name, value in model.items():
            value.copy_(tensors[f"model.{name}"])
        for index, parameter in enumerate(_parameters(self._optimizer)):
            prefix = f"optimizer.{index}."
            for name in [each for each in tensors if each.startswith(prefix)]:
                found = tensors[name].to(parameter.device)
                if found.shape == parameter.shape:  # laid out in memory as the parameter is
                    found = torch.empty_like(parameter).copy_(found)
                self._optimizer.state[parameter][name.removeprefix(prefix)] = found
        self._shuffle.set_state(tensors["rng.order"])
        torch.set_rng_state(tensors["rng.global"])
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(tensors["rng.device"], self._device)
        self._epoch, self._position = state.numbers["epoch"], state.numbers["position"]
        per_epoch = num_batches(len(self._records), self._recipe.batch_size)
        return self._epoch * per_epoch + self._position

    def keep(self, keeper: Keeper) -> None:
        """Have ``keeper`` keep all that decides about the rest of the way."""
        tensors = {f"model.{name}": value for name, value in self._model.state_dict().items()}
        for index, parameter in enumerate(_parameters(self._optimizer)):
            for name, value in self._optimizer.state[parameter].items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{index}.{name}"] = value
        # Copies: tied tensors share storage, which the format does not know.
        tensors = {
            name: value.detach().to("cpu", copy=True).contiguous()
            for name, value in tensors.items()
        }
        tensors |= {"rng.order": self._order, "rng.global": torch.get_rng_state()}
        if self._device.type == "cuda":
            tensors["rng.device"] = torch.cuda.get_rng_state(self._device)
        numbers = {"epoch": self._epoch, "position": self._position}
        keeper.save(self._fingerprint, State(tensors, numbers))


def _fingerprint(model: nn.Module, records: Records, run: _Run, seed: int) -> str:
    """Digest of all that decides about a training: where it starts, on what, and how."""
    told = [run.recipe.model_dump(mode="json"), run.epochs, run.lr, seed, weights.digest(model)]
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for values in (records.rows, records.labels):
        digest.update(values.cpu().numpy().tobytes())
    return digest.hexdigest()


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


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
