"""A process that shares a training which another one leads: what it is told, and what it does."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict

from . import batchnorm, networks
from .checkpoints import State
from .course import Course, Run
from .data import Preprocessing, Records
from .determinism import generator
from .group import Group
from .masks import apply_masks
from .recipe import Recipe
from .registry import Config
from .smallmaps import dense_small_maps
from .step import Step

_ORDER, _STATE, _RECORDS, _MASKS = "order.json", "state", "records", "masks"


class Order(BaseModel):
    """What decides about a training, beside tensors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: dict[str, Any]
    recipe: Recipe
    preprocessing: Preprocessing
    seed: int
    epochs: int
    lr: float
    device: Literal["cpu", "cuda"]
    threads: int
    frozen: bool
    """Whether batch norm keeps its running statistics."""
    still: list[str]
    """Parameters that need no gradient."""
    numbers: dict[str, int]
    """Of the state to begin with."""


@dataclass(frozen=True)
class Work:
    """A training as it is handed to the other processes: its order, and its tensors."""

    order: Order
    state: dict[str, torch.Tensor]
    records: Records
    masks: dict[str, torch.Tensor]

    @classmethod
    def of(
        cls,
        course: Course,
        run: Run,
        network: Config,
        *,
        seed: int,
        masks: Mapping[str, torch.Tensor],
        threads: int,
    ) -> Work:
        """Describe what is left of a training.

        Args:
            course: where it is.
            run: its steps and rates.
            network: what its model was built from.
            seed: of the training.
            masks: of a pruned model.
            threads: of each process.
        """
        state = course.state()
        order = Order(
            network=network.model_dump(mode="json"),
            recipe=run.recipe,
            preprocessing=course.records.preprocessing,
            seed=seed,
            epochs=run.epochs,
            lr=run.lr,
            device="cuda" if course.device.type == "cuda" else "cpu",
            threads=threads,
            frozen=batchnorm.is_frozen(course.model),
            still=[n for n, p in course.model.named_parameters() if not p.requires_grad],
            numbers=state.numbers,
        )
        return cls(order, state.tensors, course.records, dict(masks))

    def write(self, folder: Path) -> None:
        """Write it into a folder that nobody else reads."""
        (folder / _ORDER).write_text(self.order.model_dump_json())
        records = {"images": self.records.images, "labels": self.records.labels}
        records["rows"] = self.records.rows
        for name, tensors in ((_STATE, self.state), (_RECORDS, records), (_MASKS, self.masks)):
            whole = {key: value.cpu().contiguous() for key, value in tensors.items()}
            safetensors.torch.save_file(whole, folder / f"{name}.safetensors")

    @classmethod
    def read(cls, folder: Path) -> Work:
        """Read what ``write`` wrote; records stay in the file, which all processes share."""
        order = Order.model_validate_json((folder / _ORDER).read_text())
        state, records, masks = (
            safetensors.torch.load_file(folder / f"{name}.safetensors")
            for name in (_STATE, _RECORDS, _MASKS)
        )
        return cls(order, state, Records(preprocessing=order.preprocessing, **records), masks)


def assist(work: Work, group: Group) -> None:
    """Take all steps of a training together with the others of ``group``.

    Raises:
        Parted: if another process does not go on.
    """
    order = work.order
    device = place(order, group.rank)
    run = Run(order.recipe, len(work.records), order.epochs, order.lr)
    model = networks.build(networks.parse(order.network), 0).to(device).train()
    for name in order.still:
        model.get_parameter(name).requires_grad_(False)
    if work.records.images.ndim == 4:
        model.to(memory_format=torch.channels_last)
    optimizer = run.optimizer(model)
    course = Course(model, optimizer, generator(order.seed), work.records, order.recipe, device)
    course.put(State(work.state, order.numbers))
    step = Step(model, optimizer, order.recipe, device, group=group)
    frozen = batchnorm.frozen(model) if order.frozen else nullcontext()
    with frozen, dense_small_maps(model):
        done = course.done
        for x, y in course.batches(order.epochs, (group.rank, group.size)):
            # From the place alone, so that nothing of it has to be kept to go on later.
            torch.manual_seed(_seed(order.seed, group.rank, done))
            run.set_rate(optimizer, done)
            step(x, y)
            apply_masks(model, work.masks)
            done += 1


def place(order: Order, rank: int) -> torch.device:
    """Where a process trains: on the CPU, or on an accelerator of its own."""
    return torch.device("cpu") if order.device == "cpu" else torch.device("cuda", rank)


def _seed(seed: int, rank: int, step: int) -> int:
    told = json.dumps(["share", seed, rank, step]).encode()
    return int.from_bytes(hashlib.sha256(told).digest()[:8], signed=True)
