"""The registry of pruners, apart so that every pruner can import it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from ..checkpoints import Keeper, once
from ..data import Records
from ..determinism import fresh_seed
from ..errors import MissingEvidence
from ..masks import Masks, apply_masks, sparsity
from ..recipe import Recipe
from ..registry import Config, Registry
from ..report import Progress, no_progress, within
from ..training import fit

Need = Literal["retain", "recipe"]


def never() -> None:
    """Check no time limit."""


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """All a pruner is given. ``model`` is a private copy that may be changed in place."""

    model: nn.Module
    fresh: Callable[[int], nn.Module]
    """Builds the same network with a new random initialisation from a seed."""
    records: Records | None
    """What may be trained on: never a record that is to be forgotten."""
    input_shape: tuple[int, ...]
    """Of one record, without the batch: all that a data-free pruner knows of the data."""
    recipe: Recipe | None
    seed: int
    device: torch.device
    trained: bool = True
    """False: ``model`` is a fresh initialisation."""
    recover: bool = True
    """False: only the masks are wanted; the caller trains with them."""
    progress: Progress = no_progress
    check_time: Callable[[], None] = never
    keeper: Keeper | None = None
    """Keeps the state of a long training, and has what an interrupted one left."""

    def start(self) -> nn.Module:
        """Build the network at the initialisation that a retrained one starts from."""
        return self.fresh(fresh_seed(self.seed))

    def train(
        self,
        model: nn.Module,
        *,
        part: tuple[float, float],
        masks: Masks | None = None,
        epochs: int | None = None,
        lr: float | None = None,
        keep: bool = True,
    ) -> nn.Module:
        """Train on the records; ``part`` is where of the whole progress it stands.

        It tells this training from the others, too: one that an interrupted attempt had finished
        is not done again, unless ``keep`` is off because the caller keeps what it makes of it.

        Raises:
            MissingEvidence: without records or recipe.
        """
        if self.records is None:
            raise MissingEvidence("this pruner trains, and the retain set is missing")
        if self.recipe is None:
            raise MissingEvidence("this pruner trains, and there is no recipe")
        fitting = partial(
            fit,
            model,
            self.records,
            self.recipe,
            seed=self.seed,
            device=self.device,
            epochs=epochs,
            lr=lr,
            masks=masks,
            progress=within(self.progress, *part),
            check_time=self.check_time,
            keeper=self.keeper,
        )
        if not keep:
            return fitting()
        model.load_state_dict(once(self.keeper, f"pruner {part}", lambda: fitting().state_dict()))
        return model.to(self.device).eval()


@dataclass(frozen=True)
class Pruned:
    """A model with exact zeros in plain tensors, and where they are."""

    model: nn.Module
    masks: dict[str, Tensor]

    @property
    def sparsity(self) -> float:
        """Share of zeros among the weights that could be pruned."""
        return sparsity(self.masks)


class PrunerOptions(Config):
    """Options of one pruner, and what is fixed about it."""

    keeps_parent: ClassVar[bool] = False
    """The mask can only be the parent's own, so a retrained model must not use it."""

    @property
    def needs(self) -> tuple[Need, ...]:
        """What must be there to prune with these options."""
        return ()


class Prune(Protocol):
    """Change, and return, ``pruning.model`` with its masks; or another model of its shape."""

    __name__: str

    def __call__(self, pruning: Pruning, config: Any, /) -> Pruned: ...


pruners: Registry[Prune] = Registry("pruner")


def finished(pruning: Pruning, model: nn.Module, masks: dict[str, Tensor]) -> Pruned:
    """Zero what the masks say, tell the end, and hand back in eval mode."""
    model.to(pruning.device)
    apply_masks(model, masks)
    pruning.progress(1.0, {"sparsity": sparsity(masks)})
    return Pruned(model.eval(), masks)
