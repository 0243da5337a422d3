"""A cell: one method on one scenario with one seed, unlearned and measured, in a file of its own.

UA, RA and TA are 1 - forget accuracy, retain accuracy, and accuracy on never-seen records (of the
classes that stay, for a class); MIA is MIA-efficacy, the paper's SVC on confidences. ASR is how
often a trigger on never-seen records of other classes brings its target about.
"""

from __future__ import annotations

import copy
import json
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.svm import SVC
from torch import Tensor, nn

from benchmarks import oracles, scales, study
from benchmarks.papers import transfers
from benchmarks.papers.scenarios import REGIME, SCENARIOS, TRIGGER, Scenario, build, load, parent
from benchmarks.papers.transfers import PRICE
from benchmarks.scales import SCALE
from core.backdoor import attack
from core.determinism import generator
from core.device import choose
from core.errors import CoreError
from core.ladder import parse
from core.masks import Masks, prunable
from core.problem import Problem
from core.training import fit
from core.unlearners import unlearners

MOST_SCORES = 2000
BATCH = 500
BEFORE, RETRAIN = "before", "retrain"
"""No method: the parent as it is, and a model that never saw the forget set."""

Cell = dict[str, Any]
Cells = dict[tuple[str, str, int], Cell]
"""By scenario, method and seed."""

AS_PUBLISHED = {"forget_loss": "random_label", "epochs": 5, "stop": False}
"""What EUPMU's authors ask of the forget records, and for how long."""
METHODS: dict[str, dict[str, Any]] = {
    "FT": {"name": "fine_tune", "epochs": 3, "lr": 0.01},
    "GA": {"name": "gradient_ascent"},
    "IU": {"name": "influence", "samples": 500, "cg_iters": 20},
    "FF": {"name": "fisher_forgetting"},
    "l1-sparse": {"name": "l1_sparse", "epochs": 3, "lr": 0.01, **PRICE},
    "bad teacher": {"name": "bad_teacher", "epochs": 3},
    "amnesiac": {"name": "random_label", "epochs": 2, "stop": False},
    "UNSIR": {"name": "unsir", "repair_epochs": 2},
    "SSD": {"name": "ssd", "estimator": "batch", "alpha": 10.0},
    "SSD adaptive": {"name": "ssd", "selection": "adaptive"},
    "SSD guarded": {"name": "ssd"},
    "CE-FT": {"name": "ce_ft", "epochs": 3},
    "ICE-FT": {"name": "ice_ft", "epochs": 3},
    "KL-FT": {"name": "kl_ft", "epochs": 3},
    "RBM erase": {"name": "rbm", "variant": "erase", "epochs": 2},
    "linear": {"name": "linear_weighting", "epochs": 2},
    "EUPMU": {"name": "eupmu", "epochs": 2},
    "linear RL": {"name": "linear_weighting", **AS_PUBLISHED},
    "EUPMU RL": {"name": "eupmu", **AS_PUBLISHED},
    "UNGrad": {"name": "ungrad", "epochs": 2},
    "PCGrad": {"name": "pcgrad", "epochs": 2},
    "FAMO": {"name": "famo", "epochs": 2},
    "MUNBa": {"name": "munba", "epochs": 2},
    "SalUn": {"name": "salun", "epochs": 2},
    "NegGrad+": {"name": "neggrad_plus", "epochs": 2},
    "SCRUB": {"name": "scrub", "epochs": 2, "max_epochs": 1},
    "MSG": {"name": "msg", "epochs": 2},
    "DELETE": {"name": "delete"},
}
"""Fewer epochs than by default, so that each costs clearly less than retraining; but RL."""
SPECIAL: dict[tuple[str, str], dict[str, Any]] = {
    ("vit-class", "SSD"): {"alpha": 5.0},
    ("vit-subclass", "SSD"): {"alpha": 25.0},
    ("class", "EUPMU RL"): {"lr": 0.05},
    ("backdoor", "GA"): {"stop": False, "epochs": 5},
    ("backdoor-sparse", "GA"): {"stop": False, "epochs": 5},
}
"""Other options: alpha as published per task, and a rate (5e-3, ten times as much without its
momentum); on poison ascent takes all its epochs."""
BATCH_SIZES = {"SSD": 128}
"""Of the reference code, whose importance depends on it; others have the service's default."""


def options_of(scenario: str, method: str) -> dict[str, Any]:
    """Return the options of a method at the scale in use."""
    other = SPECIAL.get((scenario, method), {})
    return {**METHODS[method], **SCALE.get().methods.get(method, {}), **other}


@dataclass(frozen=True)
class Job:
    """One cell, measured or not."""

    scenario: str
    method: str
    seed: int
    """Of parent, order and method alike."""

    @property
    def path(self) -> Path:
        """File of the cell."""
        slug = re.sub(r"[^a-z0-9]+", "-", self.method.lower().replace("+", " plus")).strip("-")
        return scales.results("papers") / f"{self.scenario}-{slug}-s{self.seed}.json"

    def run(self, data: Path) -> Cell:
        """Unlearn (or retrain, or leave) and measure."""
        named = {"scenario": self.scenario, "method": self.method, "seed": self.seed}
        if self.scenario == transfers.NAME:
            return named | transfers.measure(data, self.seed)
        return named | _measured(data, SCENARIOS[self.scenario], self.method, self.seed)


def read(jobs: Iterable[Job]) -> Cells:
    """Return the cells that are there."""
    return {
        (job.scenario, job.method, job.seed): json.loads(job.path.read_text())
        for job in jobs
        if job.path.exists()
    }


def mia_efficacy(arrays: Any) -> float:
    """Share of forget records that an SVC on the true class's probability takes for never-seen."""
    draw = generator(0)

    def confidence(role: str) -> np.ndarray[Any, Any]:
        margins = torch.from_numpy(arrays[f"{role}_margin"].astype(np.float64))
        order = torch.randperm(len(margins), generator=draw)[:MOST_SCORES]
        return torch.sigmoid(margins[order]).numpy()[:, None]

    members, others, forget = confidence("retain"), confidence("judging"), confidence("forget")
    svc = SVC(C=3, kernel="rbf", gamma="auto")
    svc.fit(
        np.concatenate([members, others]),
        np.concatenate([np.ones(len(members)), np.zeros(len(others))]),
    )
    return float((svc.predict(forget) == 0).mean())


def _measured(data: Path, scenario: Scenario, method: str, seed: int) -> Cell:
    if method == RETRAIN and scenario.is_plain:
        return _known_oracle(data, scenario, seed)
    world, chosen = load(data, scenario)
    before = parent(data, scenario, seed)
    config = None
    if method not in (BEFORE, RETRAIN):
        config = options_of(scenario.name, method)
    start, cpu = time.monotonic(), time.process_time()
    model, failure = before, None
    try:
        if method == RETRAIN:
            model = _retrained(scenario, world, chosen, before, seed)
        elif config is not None:
            problem = _problem(scenario, world, chosen, before, seed)
            if method in BATCH_SIZES:
                problem = replace(problem, batch_size=BATCH_SIZES[method])
            options = parse(config)
            model = unlearners[options.name].run(problem, options).eval()
    except CoreError as error:
        failure = f"{error.code}: {error}"
    seconds, cpu = time.monotonic() - start, time.process_time() - cpu
    return {
        "config": config,
        "failure": failure,
        "seconds": seconds,
        "cpu_seconds": cpu,
        **_figures(oracles.describe_model(model, world, chosen), scenario),
        **(_attacked(model, world) if scenario.poisoned else {}),
    }


def _known_oracle(data: Path, scenario: Scenario, seed: int) -> Cell:
    """Measure the very model that ``benchmarks.oracles`` trains."""
    path = oracles.path(REGIME, scenario.forget_set, 100 + seed)
    if not path.exists():
        oracles.train(data, REGIME, scenario.forget_set, 100 + seed)
    with np.load(path) as arrays:
        spent = {key: float(arrays[key]) for key in ("seconds", "cpu_seconds")}
        spent_on = {"hardware": str(arrays["hardware"])}
        return {"config": None, "failure": None, **spent, **_figures(arrays, scenario), **spent_on}


def _retrained(
    scenario: Scenario, world: study.World, chosen: Tensor, before: nn.Module, seed: int
) -> nn.Module:
    return fit(
        build(scenario, 100 + seed),
        world.train.take(~chosen),
        world.recipe,
        seed=100 + seed,
        device=choose(),
        masks=_masks(scenario, before),
    )


def _problem(
    scenario: Scenario, world: study.World, chosen: Tensor, before: nn.Module, seed: int
) -> Problem:
    return Problem(
        model=copy.deepcopy(before).requires_grad_(True),
        fresh=lambda fresh_seed: build(scenario, fresh_seed),
        forget=world.train.take(chosen),
        retain=world.train.take(~chosen),
        tuning=world.tuning,
        recipe=world.recipe,
        importance=None,
        selector="class" if scenario.is_class else "records",
        num_classes=scenario.num_classes,
        seed=seed,
        device=choose(),
        masks=_masks(scenario, before),
        purpose="poison_removal" if scenario.poisoned else "erasure",
    )


def _masks(scenario: Scenario, before: nn.Module) -> Masks | None:
    if not scenario.sparse:
        return None
    return {name: weight.detach().ne(0) for name, weight in prunable(before).items()}


def _attacked(model: nn.Module, world: study.World) -> dict[str, float]:
    found = attack(model, world.judging, TRIGGER, num_classes=10, batch_size=BATCH, device=choose())
    return {"ASR": found.success.value, "ASR without": found.without.value}


def _figures(arrays: Any, scenario: Scenario) -> dict[str, float]:
    labels = torch.from_numpy(arrays["judging_label"].astype(np.int64))
    kept = torch.ones(len(labels), dtype=torch.bool)
    if scenario.is_class:
        kept = labels.ne(int(arrays["forget_label"][0]))
    right = torch.from_numpy(arrays["judging_right"])
    return {
        "UA": 1 - float(arrays["forget_right"].mean()),
        "RA": float(arrays["retain_right"].mean()),
        "TA": float(right[kept].double().mean()),
        "MIA": mia_efficacy(arrays),
        "AUC": oracles.summary(arrays)["auc"],
    }
