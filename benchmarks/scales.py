"""How large the studies on CIFAR-10 are: for a machine with few cores, or as published, for a GPU.

One scale is in use at a time, ``--scale`` chooses it. Results of each lie in folders and pages of
their own, and so do the models that are kept between runs.
"""

from __future__ import annotations

import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks import hardware

Options = Mapping[str, Any]

_SGD: Options = {
    "name": "sgd",
    "lr": 0.1,
    "momentum": 0.9,
    "nesterov": True,
    "weight_decay": 5e-4,
}
_MEMORISING: Options = {
    "epochs": 15,
    "batch_size": 256,
    "optimizer": _SGD,
    "schedule": {"name": "one_cycle", "warmup": 0.2},
    "precision": "bf16",
}
_REGULARISED: Options = {
    **_MEMORISING,
    "augment": ["crop", "flip"],
    "label_smoothing": 0.1,
    "batch_size": 128,
    "epochs": 8,
}
_PAPER: Options = {
    "epochs": 182,
    "batch_size": 256,
    "optimizer": {**_SGD, "nesterov": False},
    "schedule": {"name": "multistep", "milestones": [91, 136], "gamma": 0.1},
    "augment": ["crop", "flip"],
    "precision": "bf16",
}
"""Of Jia et al., NeurIPS 2023, arXiv:2304.04934, but for the precision."""
_TRANSFORMER: Options = {
    "epochs": 10,
    "batch_size": 128,
    "optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.05},
    "schedule": {"name": "cosine", "warmup": 0.1},
    "precision": "bf16",
}


@dataclass(frozen=True)
class Scale:
    """Records, networks and recipes of all studies."""

    says: str
    """The network, for the pages."""
    suffix: str
    """Of folders and pages."""
    records: int
    """Trained on, but for the shipped checkpoint."""
    resnet: Options
    vit: Options
    recipes: Mapping[str, Options]
    """By regime."""
    vit_recipe: Options
    short: int
    """Epochs of the papers' applications, which are learned soon: a patch, a few classes."""
    clock: Literal["cpu_seconds", "seconds"]
    """What is compared; the CPU's seconds tell nothing of a GPU."""
    price: str
    """Where the price of l1-sparse is from, for the page."""
    methods: Mapping[str, Options] = field(default_factory=dict)
    """Other options of the papers' methods."""

    @property
    def time(self) -> str:
        """Name of the seconds that are compared."""
        return "CPU" if self.clock == "cpu_seconds" else "wall"

    def now(self) -> float:
        """Read the clock."""
        return time.process_time() if self.clock == "cpu_seconds" else time.monotonic()

    @property
    def option(self) -> str:
        """What a command needs for this scale."""
        return f" --scale {self.suffix[1:]}" if self.suffix else ""


SMALL = Scale(
    says="ResNet-18 with the ImageNet stem",
    suffix="",
    records=10_000,
    resnet={"name": "torchvision/resnet18"},
    vit={"name": "vit", "hidden": 96, "depth": 4, "heads": 4},
    recipes={
        "memorised": {**_MEMORISING, "batch_size": 128, "epochs": 12}
        | {"optimizer": {**_SGD, "lr": 0.05}},
        "regularised": _REGULARISED,
        "shipped": _MEMORISING,
    },
    vit_recipe=_TRANSFORMER,
    short=5,
    clock="cpu_seconds",
    price="the best of four tried on the class of seed 1, by forgetting and never-seen accuracy",
)
FULL = Scale(
    says="ResNet-18 with the CIFAR stem",
    suffix="-full",
    records=50_000,
    resnet={"name": "torchvision/resnet18", "stem": "cifar"},
    vit={"name": "vit", "hidden": 384, "depth": 7, "heads": 6, "mlp_ratio": 4},
    recipes={"memorised": _PAPER, "regularised": _REGULARISED},
    vit_recipe={**_TRANSFORMER, "epochs": 200, "batch_size": 256, "augment": ["crop", "flip"]},
    short=182,
    clock="seconds",
    price="its authors', as are the recipe of the ResNet and the length of l1-sparse and FT",
    methods={
        "FT": {"epochs": 10},
        "l1-sparse": {"epochs": 10, "gamma": 5e-4, "no_l1_epochs": 0},
    },
)
"""Of arXiv:2304.04934, and a transformer trained from the start: none is published without its
weights."""
SCALES = {"small": SMALL, "full": FULL}
SCALE: ContextVar[Scale] = ContextVar("SCALE", default=SMALL)
"""In use."""


def parse(options: ArgumentParser) -> Namespace:
    """Parse the command line, ``--scale`` included, and use that scale from here on."""
    options.add_argument("--scale", choices=SCALES, default="small", help="full: for a GPU")
    args = options.parse_args()
    SCALE.set(SCALES[args.scale])
    absent = {*(getattr(args, "regime", None) or ())} - {*SCALE.get().recipes}
    if absent:
        options.error(f"there is no regime {', '.join(absent)} at the scale {args.scale}")
    return args


def results(name: str) -> Path:
    """Return the folder (or the file, without ending) of these results at the scale in use."""
    return hardware.RESULTS / f"{name}{SCALE.get().suffix}"


def cache() -> Path:
    """Return where models of the scale in use are kept between runs."""
    return Path(tempfile.gettempdir()) / f"lethe-study{SCALE.get().suffix}"
