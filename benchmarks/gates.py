"""Do the gates tell right from wrong? Published versions held against models retrained anew.

Every forget set of a regime is taken through the ladder of the ``standard`` policy. What an
approximate rung published is compared with the oracles' 99 % prediction interval (standard
deviation pooled over forget sets of like size, t quantile, factor sqrt(1 + 1/k)), widened by two
points, on forget accuracy and on the AUC of the membership attack. Each oracle is held against the
others of its set in the same way. Files of finished cells are skipped.

    python -m benchmarks.oracles && python -m benchmarks.gates [--data FOLDER] [--regime NAME]
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import re
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from torch import nn

from benchmarks import cifar, oracles, study
from benchmarks.hardware import RESULTS, need, parser
from benchmarks.tables import Row, write
from core import importance, weights
from core.device import choose
from core.findings import Rung
from core.ladder import parse
from core.policies import Situation, ladder
from core.report import no_report
from core.rungs import Case, attempt

FOLDER = RESULTS / "gates"
CACHE = Path(tempfile.gettempdir()) / "lethe-study"
WIDENED = 0.02
LEVEL = 0.99
MEASURES = ("forget_accuracy", "auc")


@dataclass(frozen=True)
class Interval:
    """Where one more oracle is expected."""

    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Whether the value lies inside, two points of slack on either side."""
        return self.low - WIDENED <= value <= self.high + WIDENED


def main() -> None:
    """Run what is missing, and write the tables."""
    options = parser(__doc__)
    options.add_argument("--regime", choices=oracles.REGIMES, action="append")
    options.add_argument("--tables-only", action="store_true")
    args = options.parse_args()
    need(args.data, cifar.TRAIN, cifar.TEST)
    if not args.tables_only:
        for regime in args.regime or oracles.REGIMES:
            for name in study.forget_sets(regime):
                study.cell(FOLDER / f"{regime}-{name}.json", _ladder(args.data, regime, name))
    _tables()


def _ladder(data: Path, regime: str, name: str) -> Any:
    return lambda: run(data, regime, name)


def run(data: Path, regime: str, name: str) -> dict[str, Any]:
    """Climb the standard ladder up to its first exact rung; return what every rung measured."""
    world = study.world(data, regime)
    spec = study.forget_sets(regime)[name]
    chosen = study.mask(world.train, spec)
    forget = world.train.take(chosen)
    is_class = "label" in spec
    parent = study.parent(data, regime, CACHE)
    case = Case(
        parent=parent,
        fresh=world.fresh,
        forget=forget,
        retain=world.train.take(~chosen),
        tuning=world.tuning,
        judging=world.judging,
        recipe=world.recipe,
        importance=_importance(data, regime, parent),
        requests={"request": forget.rows.tolist()},
        selector="class" if is_class else "records",
        forget_classes=frozenset({spec["label"]} if is_class else ()),
        num_classes=10,
        policy="standard",
        seed=0,
        batch_size=256,
        bn_policy="recalibrate",
        device=choose(),
        deadline=math.inf,
        report=no_report,
    )
    configs = [parse(raw) for raw in ladder(_situation(case))]
    start, cpu = time.monotonic(), time.process_time()
    rungs, published = [], None
    for index, config in enumerate(itertools.takewhile(lambda c: not c.is_exact, configs)):
        rung, published = attempt(case, config, index, len(configs), exact_follows=True)
        rungs.append(rung)
        if published is not None:
            break
    return {
        "regime": regime,
        "set": name,
        "records": len(forget),
        "published": None if published is None else rungs[-1].unlearner["name"],
        "seconds": time.monotonic() - start,
        "cpu_seconds": time.process_time() - cpu,
        "rungs": [_short(rung) for rung in rungs],
    }


def _importance(data: Path, regime: str, parent: nn.Module) -> importance.Importance:
    """Return what ``prepare`` stores, made once per machine."""
    path = CACHE / f"{regime}.importance.safetensors"
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


def _short(rung: Rung) -> dict[str, Any]:
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


def _tables() -> None:
    cells = [json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))]
    known = {regime: _oracles(regime) for regime in oracles.REGIMES}
    rows = [row for cell in cells for row in _of_cell(cell, known[cell["regime"]])]
    for regime, found in known.items():
        inside = [ok for _, ok in left_out(found)]
        if inside:
            share = f"{len(inside) - sum(inside)} of {len(inside)} values outside"
            rows.append(Row(f"{regime}: oracles left out in turn", share, "at most 1 in 20"))
    published = [cell for cell in cells if cell["published"]]
    for regime in oracles.REGIMES:
        ours = [cell for cell in cells if cell["regime"] == regime]
        sets = study.forget_sets(regime)
        if ours:
            passed, count = sum(c["published"] is not None for c in ours), len(sets)
            unmeasured = f", {count - len(ours)} not measured" if len(ours) < count else ""
            rows.append(
                Row(
                    f"{regime}: forget sets that pass on an approximate rung",
                    f"{passed} of {count}{unmeasured}",
                    "at least half",
                    2 * passed >= count,
                )
            )
    write(
        "gates",
        "Gates against oracles",
        "python -m benchmarks.oracles && python -m benchmarks.gates",
        [
            f"CIFAR-10, ResNet-18 with the ImageNet stem; {len(published)} of {len(cells)} forget "
            "sets published by an approximate rung. Intervals are for one more oracle, 99 %, "
            "before the slack of two points. Time is CPU seconds of all rungs tried, audits "
            "included, over the median CPU seconds of retraining. Forget sets were measured on "
            f"{'; or '.join(sorted({cell['hardware'] for cell in cells}))}. The last line on "
            "hardware is that of the machine which wrote this page.",
        ],
        rows,
        {"cells": cells},
    )


def _of_cell(cell: dict[str, Any], found: dict[str, list[dict[str, float]]]) -> Iterator[Row]:
    name = f"{cell['regime']} {cell['set']}"
    trained = found.get(cell["set"], [])
    last = cell["rungs"][-1] if cell["rungs"] else {}
    cost = ""
    if trained:
        retrain = statistics.median(oracle["cpu_seconds"] for oracle in trained)
        cost = f"; {cell['cpu_seconds'] / retrain:.2f} of a retraining"
    if cell["published"] is None:
        tried = "; ".join(dict.fromkeys(map(_refused, cell["rungs"])))
        yield Row(f"{name}: retrained", f"{tried or 'too few records to judge'}{cost}")
        return
    for measure in MEASURES:
        interval = expected(found, cell["set"], measure)
        if interval is None:
            yield Row(f"{name}: {cell['published']}, {measure}", f"{last[measure]:.3f}, no oracle")
            continue
        yield Row(
            f"{name}: {cell['published']}, {measure}",
            f"{last[measure]:.3f}{cost}",
            f"{interval.low:.3f} to {interval.high:.3f}",
            interval.holds(last[measure]),
        )


def _refused(rung: dict[str, Any]) -> str:
    if rung["status"] == "skipped":
        return f"skipped: {rung['reason'].partition('; ')[2]}"
    return f"{rung['unlearner']['name']}: {rung['reason']}"


def _oracles(regime: str) -> dict[str, list[dict[str, float]]]:
    """Set -> one summary per oracle."""
    found: dict[str, list[dict[str, float]]] = {}
    for path in sorted(oracles.FOLDER.glob(f"{regime}-*.npz")):
        with np.load(path, allow_pickle=False) as arrays:
            figures = oracles.summary(arrays) | {"cpu_seconds": float(arrays["cpu_seconds"])}
        name = re.sub(r"-s\d+$", "", path.stem).removeprefix(f"{regime}-")
        found.setdefault(name, []).append(figures)
    return found


def kind(name: str) -> str:
    """Forget sets of like size share a kind."""
    return re.sub(r"(?<=class)\d+$|-\d+$", "", name)


def expected(
    found: dict[str, list[dict[str, float]]], name: str, measure: str, skip: int | None = None
) -> Interval | None:
    """Prediction interval for one more oracle of a set; None with fewer than two to go by.

    Args:
        found: set -> summaries of its oracles.
        name: the set.
        measure: which figure.
        skip: leave this oracle of the set out.
    """
    alike = {
        other: [
            oracle[measure]
            for index, oracle in enumerate(figures)
            if other != name or index != skip
        ]
        for other, figures in found.items()
        if kind(other) == kind(name)
    }
    own = alike.get(name, [])
    freedom = sum(len(values) - 1 for values in alike.values() if values)
    if not own or freedom < 1:
        return None
    squares = sum(
        (value - statistics.fmean(values)) ** 2 for values in alike.values() for value in values
    )
    spread = math.sqrt(squares / freedom) * math.sqrt(1 + 1 / len(own))
    reach = float(stats.t.ppf(0.5 + LEVEL / 2, freedom)) * spread
    return Interval(statistics.fmean(own) - reach, statistics.fmean(own) + reach)


def left_out(found: dict[str, list[dict[str, float]]]) -> Iterator[tuple[str, bool]]:
    """Hold every oracle against the others of its set."""
    for name, figures in found.items():
        for index, oracle in enumerate(figures):
            for measure in MEASURES:
                interval = expected(found, name, measure, skip=index)
                if interval is not None:
                    yield name, interval.holds(oracle[measure])


if __name__ == "__main__":
    main()
