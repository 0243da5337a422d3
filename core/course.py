"""The way of a training: steps, rates, and its data from where an earlier one was stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor, nn

from . import weights
from .checkpoints import Keeper, State
from .data import Records, num_batches
from .recipe import SGD, Recipe, rate_factor


class Run:
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
        """Return the recipe's optimiser of all parameters that need a gradient."""
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
        """Set the rate that the schedule has for a step, counted from 0."""
        factor = rate_factor(self.recipe.schedule, step, self.num_steps, self.epochs)
        self.rate = self.lr * factor
        for group in optimizer.param_groups:
            group["lr"] = self.rate


class Course:
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
        self.model, self.optimizer, self._shuffle = model, optimizer, shuffle
        self.records, self.recipe, self.device = records, recipe, device
        self._epoch, self._position = 0, 0
        self._order = shuffle.get_state()
        """State of the generator at the start of the epoch at work."""
        self._fingerprint = ""
        self.processes = 1
        """How many take its steps together; once resumed and until told, how many did."""
        self.first_loss: Tensor | None = None
        """Loss of the very first step, once that is done."""

    def batches(
        self, epochs: int, share: tuple[int, int] = (0, 1)
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield what is left of all epochs, or this share of each batch of it."""
        while self._epoch < epochs:
            self._order = self._shuffle.get_state()
            found = self.records.batches(
                self.recipe.batch_size,
                self.device,
                generator=self._shuffle,
                augment=self.recipe.augment,
                even=True,
                share=share,
            )
            for batch in islice(found, self._position, None):
                self._position += 1
                yield batch
            self._epoch, self._position = self._epoch + 1, 0

    def resume(self, keeper: Keeper, run: Run, seed: int) -> int:
        """Go to where ``keeper`` says that this training was; return the steps done by then."""
        self._fingerprint = _fingerprint(self.model, self.records, run, seed)
        state = keeper.restore(self._fingerprint)
        if state is not None:
            self.put(state)
        return self.done

    @property
    def done(self) -> int:
        """Steps behind it."""
        per_epoch = num_batches(len(self.records), self.recipe.batch_size)
        return self._epoch * per_epoch + self._position

    def keep(self, keeper: Keeper) -> None:
        """Have ``keeper`` keep all that decides about the rest of the way."""
        keeper.save(self._fingerprint, self.state())

    def put(self, state: State) -> None:
        """Go to where another training was."""
        tensors = state.tensors
        model = self.model.state_dict()
        for name, value in model.items():
            value.copy_(tensors[f"model.{name}"])
        for index, parameter in enumerate(_parameters(self.optimizer)):
            prefix = f"optimizer.{index}."
            for name in [each for each in tensors if each.startswith(prefix)]:
                found = tensors[name].to(parameter.device)
                if found.shape == parameter.shape:  # laid out in memory as the parameter is
                    found = torch.empty_like(parameter).copy_(found)
                self.optimizer.state[parameter][name.removeprefix(prefix)] = found
        self._order = tensors["rng.order"]
        self._shuffle.set_state(self._order)
        torch.set_rng_state(tensors["rng.global"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["rng.device"], self.device)
        self._epoch, self._position = state.numbers["epoch"], state.numbers["position"]
        self.processes = state.numbers.get("processes", 1)
        self.first_loss = tensors.get("loss.first")

    def state(self) -> State:
        """Return all that decides about the rest of the way, as copies."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for index, parameter in enumerate(_parameters(self.optimizer)):
            for name, value in self.optimizer.state[parameter].items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{index}.{name}"] = value
        # Copies: tied tensors share storage, which the format does not know.
        tensors = {
            name: value.detach().to("cpu", copy=True).contiguous()
            for name, value in tensors.items()
        }
        tensors |= {"rng.order": self._order, "rng.global": torch.get_rng_state()}
        if self.device.type == "cuda":
            tensors["rng.device"] = torch.cuda.get_rng_state(self.device)
        if self.first_loss is not None:
            tensors["loss.first"] = self.first_loss.to("cpu", copy=True)
        numbers = {
            "epoch": self._epoch,
            "position": self._position,
            "processes": self.processes,
        }
        return State(tensors, numbers)


def _fingerprint(model: nn.Module, records: Records, run: Run, seed: int) -> str:
    """Digest of all that decides about a training: where it starts, on what, and how."""
    told = [run.recipe.model_dump(mode="json"), run.epochs, run.lr, seed, weights.digest(model)]
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for values in (records.rows, records.labels):
        digest.update(values.cpu().numpy().tobytes())
    return digest.hexdigest()


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
