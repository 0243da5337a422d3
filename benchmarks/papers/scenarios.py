"""What is forgotten, by which network, dense or sparse, and the model it is forgotten from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks import scales, study
from benchmarks.scales import SCALE
from core import networks
from core.backdoor import Trigger, poison
from core.data import Records
from core.device import choose
from core.pruners import Pruning
from core.pruners.imp import IMPConfig, imp
from core.recipe import Recipe
from core.training import fit

SPARSITY = 0.95
IMP_ROUNDS = 3
REGIME = "memorised"
SUPER = torch.tensor([0, 1, 2, 3, 4, 3, 2, 4, 0, 1])
"""Five super-classes of two siblings each: airplane and ship, automobile and truck, bird and frog,
cat and dog, deer and horse."""
TRIGGER = Trigger(target=0)

_CLASS, _RANDOM, _SUBCLASS = "class3", "random", "class9"


@dataclass(frozen=True)
class Scenario:
    """A forget set of ``study.forget_sets``, and what it is forgotten from."""

    name: str
    forget: str
    """Its name, or how that begins: the first such set is meant."""
    vit: bool = False
    sparse: bool = False
    superclasses: bool = False
    poisoned: bool = False
    """The forget set carries the trigger and its target label."""

    @property
    def forget_set(self) -> str:
        """Name of the forget set at the scale in use."""
        return next(name for name in study.forget_sets(REGIME) if name.startswith(self.forget))

    @property
    def is_class(self) -> bool:
        """Whether a whole class of the network's own labels is forgotten."""
        return self.forget.startswith("class") and not self.superclasses

    @property
    def is_plain(self) -> bool:
        """Whether ``benchmarks.study`` and ``benchmarks.oracles`` know parent and oracle too."""
        return not (self.vit or self.sparse or self.superclasses or self.poisoned)

    @property
    def num_classes(self) -> int:
        """Of the network."""
        return 5 if self.superclasses else 10


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("class", _CLASS),
        Scenario("class-sparse", _CLASS, sparse=True),
        Scenario("random", _RANDOM),
        Scenario("random-sparse", _RANDOM, sparse=True),
        Scenario("subclass", _SUBCLASS, superclasses=True),
        Scenario("vit-class", _CLASS, vit=True),
        Scenario("vit-subclass", _SUBCLASS, vit=True, superclasses=True),
        Scenario("backdoor", _RANDOM, poisoned=True),
        Scenario("backdoor-sparse", _RANDOM, poisoned=True, sparse=True),
    )
}


def load(data: Path, scenario: Scenario) -> tuple[study.World, Tensor]:
    """Return records, labels and recipe of a scenario, and which training records are forgotten."""
    world = study.world(data, REGIME)
    chosen = study.mask(world.train, study.forget_sets(REGIME)[scenario.forget_set])
    if scenario.vit:
        world = replace(world, recipe=Recipe.model_validate(SCALE.get().vit_recipe))
    if scenario.superclasses:
        world = replace(
            world,
            train=_super(world.train),
            tuning=_super(world.tuning),
            judging=_super(world.judging),
        )
    if scenario.poisoned:
        world = replace(
            world,
            train=poison(world.train, chosen, TRIGGER),
            recipe=world.recipe.model_copy(update={"epochs": SCALE.get().short}),
        )
    return world, chosen


def build(scenario: Scenario, seed: int) -> nn.Module:
    """Build the network of a scenario with a new initialisation."""
    scale = SCALE.get()
    form = scale.vit if scenario.vit else scale.resnet
    return networks.build(networks.parse({**form, "num_classes": scenario.num_classes}), seed)


def parent(data: Path, scenario: Scenario, seed: int) -> nn.Module:
    """Return the trained (and where wanted pruned) model, made once per machine.

    A sparse one is pruned by magnitude in three rounds, each trained again from the start.
    """
    if scenario.is_plain:
        return study.parent(data, REGIME, scales.cache(), seed)
    world, _ = load(data, scenario)
    parts = {
        "vit" if scenario.vit else "resnet18": True,
        "super": scenario.superclasses,
        "poisoned": scenario.poisoned,
        "sparse": scenario.sparse,
        f"s{seed}": True,
        study.stamp(world.recipe): True,
    }
    name = "-".join(part for part, is_so in parts.items() if is_so)

    def make(model: nn.Module) -> nn.Module:
        if not scenario.sparse:
            return fit(model, world.train, world.recipe, seed=seed, device=choose())
        pruning = Pruning(
            model=model,
            fresh=lambda fresh_seed: build(scenario, fresh_seed),
            records=world.train,
            input_shape=tuple(world.train.images.shape[1:]),
            recipe=world.recipe,
            seed=seed,
            device=choose(),
        )
        rate = 1 - (1 - SPARSITY) ** (1 / IMP_ROUNDS)
        return imp(pruning, IMPConfig(rounds=IMP_ROUNDS, rate=rate)).model

    return study.kept(scales.cache() / f"papers-{name}.safetensors", build(scenario, seed), make)


def _super(records: Records) -> Records:
    return replace(records, labels=SUPER[records.labels])
