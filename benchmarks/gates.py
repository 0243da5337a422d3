"""Do the gates tell right from wrong? Published versions held against models retrained anew.

Every forget set of a regime is taken through the ladder of the ``standard`` policy. What an
approximate rung published is compared with the oracles' 99 % prediction interval (standard
deviation pooled over forget sets of like size, t quantile, factor sqrt(1 + 1/k)), widened by two
points, on forget accuracy and on the AUC of the membership attack. Each oracle is held against the
others of its set in the same way. Where no approximate rung published, the ladder's exact rungs are
tried, in a cell of their own. Files of finished cells and of described parents are skipped;
``--tables-only`` needs nothing else.

    python -m benchmarks.oracles && python -m benchmarks.gates [--data FOLDER] [--regime NAME]
        [--scale full]
"""

from __future__ import annotations

import copy
import math
import time
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import cifar, gate_tables, oracles, scales, study
from benchmarks.hardware import need, parser
from benchmarks.scales import SCALE
from core import importance, weights
from core.device import choose
from core.findings import Rung
from core.ladder import parse
from core.measures import correct
from core.policies import Situation, ladder
from core.report import no_report
from core.rungs import Case, attempt
from core.scores import gather


def main() -> None:
    """Run what is missing, and write the tables."""
    options = parser(__doc__)
    options.add_argument("--regime", choices=oracles.REGIMES, action="append")
    options.add_argument("--parents-only", action="store_true", help="no ladders")
    options.add_argument("--tables-only", action="store_true", help="from what is there")
    args = scales.parse(options)
    if not args.tables_only:
        need(args.data, cifar.TRAIN, cifar.TEST)
        for regime in args.regime or SCALE.get().recipes:
            parents = scales.results("parents") / f"{regime}.json"
            study.cell(parents, partial(describe_parent, args.data, regime))
            for name in () if args.parents_only else study.forget_sets(regime):
                path = gate_tables.path(regime, name)
                found = study.cell(path, partial(run, args.data, regime, name))
                if found["published"] is None:
                    path = gate_tables.path(regime, name, exact=True)
                    study.cell(path, partial(run, args.data, regime, name, exact=True))
    gate_tables.write_page()


def describe_parent(data: Path, regime: str) -> dict[str, Any]:
    """Return accuracies of a regime's parent on all records it saw and on all it never saw."""
    world = study.world(data, regime)
    parent = study.parent(data, regime, scales.cache())
    never_seen = [
        correct(gather(parent, records, batch_size=500, device=choose()), records.labels)
        for records in (world.tuning, world.judging)
    ]
    seen = gather(parent, world.train, batch_size=500, device=choose())
    return {
        "regime": regime,
        "train_accuracy": float(correct(seen, world.train.labels).double().mean()),
        "test_accuracy": float(torch.cat(never_seen).double().mean()),
    }


def run(data: Path, regime: str, name: str, *, exact: bool = False) -> dict[str, Any]:
    """Climb the standard ladder's approximate or exact rungs until one publishes.

    Returns:
        What every rung measured.
    """
    world = study.world(data, regime)
    spec = study.forget_sets(regime)[name]
    chosen = study.mask(world.train, spec)
    parent = study.parent(data, regime, scales.cache())
    case = case_of(world, parent, chosen, spec, importance=_importance(data, regime, parent))
    configs = [parse(raw) for raw in ladder(_situation(case))]
    start, cpu = time.monotonic(), time.process_time()
    rungs, published = [], None
    for index, config in enumerate(configs):
        if config.is_exact != exact:
            continue
        case.report = clock = Clock()
        rung, published = attempt(case, config, index, len(configs), exact_follows=not exact)
        rungs.append(short(rung) | {"cpu_seconds": clock.of("unlearning")})
        if published is not None:
            break
    return {
        "regime": regime,
        "set": name,
        "records": len(case.forget),
        "published": None if published is None else rungs[-1]["unlearner"]["name"],
        "seconds": time.monotonic() - start,
        "cpu_seconds": time.process_time() - cpu,
        "rungs": rungs,
    }


class Clock:
    """A report that counts the CPU seconds of every phase, each from one word to the next."""

    def __init__(self) -> None:
        self._spent: defaultdict[str, float] = defaultdict(float)
        self._phase, self._since = "", time.process_time()

    def __call__(self, phase: str, *_: object) -> None:
        now = time.process_time()
        self._spent[self._phase] += now - self._since
        self._phase, self._since = phase, now

    def of(self, phase: str) -> float:
        """Seconds of a phase up to now."""
        self(self._phase)
        return self._spent[phase]


def case_of(
    world: study.World,
    parent: nn.Module,
    chosen: torch.Tensor,
    spec: dict[str, Any],
    **changes: Any,
) -> Case:
    """Return what a job of the ``standard`` policy hands to its rungs.

    Args:
        world: of the regime.
        parent: to forget from.
        chosen: bool[N], which training records are forgotten.
        spec: what they are, as in ``study.forget_sets``.
        changes: of the case.
    """
    forget = world.train.take(chosen)
    is_class = "label" in spec
    given: dict[str, Any] = {
        "parent": parent,
        "fresh": world.fresh,
        "forget": forget,
        "retain": world.train.take(~chosen),
        "tuning": world.tuning,
        "judging": world.judging,
        "recipe": world.recipe,
        "importance": None,
        "requests": {"request": forget.rows.tolist()},
        "selector": "class" if is_class else "records",
        "forget_classes": frozenset({spec["label"]} if is_class else ()),
        "num_classes": 10,
        "policy": "standard",
        "seed": 0,
        "batch_size": 256,
        "bn_policy": "recalibrate",
        "device": choose(),
        "deadline": math.inf,
        "report": no_report,
    }
    return Case(**given | changes)


def _importance(data: Path, regime: str, parent: nn.Module) -> importance.Importance:
    """Return what ``prepare`` stores, made once per machine."""
    path = scales.cache() / f"{regime}.importance.safetensors"
    if path.exists():
        found = importance.load(path)
        if found.weights == weights.digest(parent):
            return found
    made = importance.estimate(
        copy.deepcopy(parent).requires_grad_(True),
        study.world(data, regime).train,
        "fisher_persample",
        batch_size=256,
        device=choose(),
        seed=0,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    importance.save(made, path)
    return made


def _situation(case: Case) -> Situation:
    return Situation(
        policy="standard",
        selector=case.selector,
        num_forget=len(case.forget),
        num_train=len(case.forget) + (0 if case.retain is None else len(case.retain)),
        has_recipe=True,
        has_holdout=True,
        has_importance=True,
        has_batchnorm=True,
        modality="image",
        architecture="torchvision/resnet18",
        epochs=None if case.recipe is None else case.recipe.epochs,
    )


def short(rung: Rung) -> dict[str, Any]:
    """Return what a cell keeps of a rung."""
    found = {
        (finding.measure, finding.scope): finding.value
        for finding in rung.findings
        if finding.scope == "forget"
    }
    return {
        "unlearner": rung.unlearner,
        "status": rung.status,
        "reason": rung.reason,
        "seconds": rung.seconds,
        "audit_seconds": rung.audit_seconds,
        "forget_accuracy": found.get(("accuracy", "forget")),
        "auc": found.get(("auc_margin", "forget")),
        "gates": {gate.name: [gate.verdict, gate.value, gate.power] for gate in rung.gates},
        "trials": len(rung.tried),
    }


if __name__ == "__main__":
    main()
