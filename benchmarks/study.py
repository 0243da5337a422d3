"""What the studies on CIFAR-10 share: regimes, forget sets, roles, and files of finished cells.

A cell is one method (or oracle) on one forget set with one seed. It has a file of its own, so that
a run can stop anywhere and go on later; ``main`` of each study skips what is there.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import cifar
from benchmarks.hardware import describe
from benchmarks.scales import SCALE
from core import networks, weights
from core.data import Records, split_holdout
from core.determinism import generator
from core.device import choose
from core.recipe import Recipe
from core.training import fit

PARENT_SEED = 1
"""Other seeds make other parents."""
SPLIT_KEY = "study"


@dataclass(frozen=True)
class World:
    """A regime: its training records, both halves of its holdout, how it is trained."""

    regime: str
    train: Records
    tuning: Records
    judging: Records
    recipe: Recipe

    def fresh(self, seed: int) -> nn.Module:
        """Build the network with a new initialisation."""
        return networks.build(architecture(), seed)


def architecture() -> Any:
    """Return the network of all regimes, a ResNet-18 with ten classes."""
    return networks.parse({**SCALE.get().resnet, "num_classes": 10})


@functools.lru_cache(maxsize=3)
def world(data: Path, regime: str) -> World:
    """Read the records of a regime; the holdout is halved as the service does it."""
    scale = SCALE.get()
    count = 50_000 if regime == "shipped" else scale.records
    train = cifar.records(data, cifar.TRAIN, count, seed=0)
    holdout = cifar.records(data, cifar.TEST, 10_000, seed=0)
    is_tuning = split_holdout([str(row) for row in holdout.rows.tolist()], SPLIT_KEY)
    return World(
        regime=regime,
        train=train,
        tuning=holdout.take(is_tuning),
        judging=holdout.take(~is_tuning),
        recipe=Recipe.model_validate(scale.recipes[regime]),
    )


def forget_sets(regime: str) -> dict[str, dict[str, Any]]:
    """Name -> what is forgotten: a class, or that many records drawn with a seed."""
    if regime == "shipped":
        return {
            "class9": {"label": 9},
            "class3": {"label": 3},
            "random5000": {"count": 5000, "seed": 1},
            "random500": {"count": 500, "seed": 2},
        }
    tenth, hundredth = SCALE.get().records // 10, SCALE.get().records // 100
    drawn = [(tenth, 1), (tenth, 2), (tenth, 3), (hundredth, 4), (hundredth, 5), (50, 6)]
    return {
        **{f"class{label}": {"label": label} for label in (0, 3, 5, 9)},
        **{f"random{count}-{seed}": {"count": count, "seed": seed} for count, seed in drawn},
    }


def mask(train: Records, spec: dict[str, Any]) -> torch.Tensor:
    """bool[N]: which training records a forget set holds."""
    if "label" in spec:
        return train.labels.eq(spec["label"])
    chosen = torch.zeros(len(train), dtype=torch.bool)
    order = torch.randperm(len(train), generator=generator(spec["seed"]))
    chosen[order[: spec["count"]]] = True
    return chosen


def parent(data: Path, regime: str, cache: Path, seed: int = PARENT_SEED) -> nn.Module:
    """Return the model before unlearning; trained once per machine and kept under ``cache``."""
    if regime == "shipped":
        return cifar.model(data)
    chosen = world(data, regime)
    return kept(
        cache / f"{regime}-s{seed}-{stamp(chosen.recipe)}.safetensors",
        chosen.fresh(seed),
        lambda model: fit(model, chosen.train, chosen.recipe, seed=seed, device=choose()),
    )


def stamp(recipe: Recipe) -> str:
    """Return eight hex digits for the name of a kept model: another recipe makes another one."""
    return hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()[:8]


def kept(path: Path, model: nn.Module, make: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """Load a model that was made before, or make and keep it."""
    if not path.exists():
        made = make(model)
        path.parent.mkdir(parents=True, exist_ok=True)
        weights.save(made.cpu(), path)
    weights.load(path, model)
    return model.eval()


def cell(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return a finished cell, or make it and write it in one step."""
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    made = make()
    made.setdefault("hardware", describe())
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(f".{os.getpid()}")
    scratch.write_text(json.dumps(made, indent=1) + "\n")
    scratch.replace(path)
    print(f"{path.stem} done", flush=True)
    return made
