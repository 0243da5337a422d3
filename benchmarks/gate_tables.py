"""The page on the gates: every published value beside its oracles, and what the regimes reach.

Read from the cells of ``benchmarks.gates``, the oracles and the described parents alone.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks import oracles, scales, study
from benchmarks.scales import SCALE
from benchmarks.tables import Row, write

EXACT = "-exact"
"""Ends the name of a cell of exact rungs."""
WIDENED = 0.02
LEVEL = 0.99
OUTSIDE = 0.05
"""Largest share of values outside."""
REACH = 0.25
"""Largest share of a retraining that a rung may take."""
GAP = 0.05
"""A regularised parent's accuracy falls by less between training and never-seen records."""
MEASURES = ("forget_accuracy", "auc")

Cell = dict[str, Any]
Retrained = Mapping[str, Cell]
"""Cells of exact rungs, by file name."""
Oracles = dict[str, list[dict[str, float]]]
"""Set -> one summary per oracle."""


@dataclass(frozen=True)
class Interval:
    """Where one more oracle is expected."""

    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Whether the value lies inside, two points of slack on either side."""
        return self.low - WIDENED <= value <= self.high + WIDENED


def path(regime: str, name: str, *, exact: bool = False) -> Path:
    """File of a forget set's approximate rungs, or of its exact ones."""
    return scales.results("gates") / f"{regime}-{name}{EXACT * exact}.json"


def write_page() -> None:
    """Write the page from the files that are there."""
    scale, read = SCALE.get(), _read("gates")
    cells = [cell for stem, cell in read.items() if not stem.endswith(EXACT)]
    retrained = {stem: cell for stem, cell in read.items() if stem.endswith(EXACT)}
    known = {regime: _oracles(regime) for regime in scale.recipes}
    parents = _read("parents")
    rows = [row for cell in cells for row in of_cell(cell, known[cell["regime"]], retrained)]
    for regime, found in known.items():
        ours = [cell for cell in cells if cell["regime"] == regime]
        rows += parent_rows(regime, parents.get(regime))
        rows += agreement(regime, ours, found)
        rows.append(powerless(regime, ours))
        rows += reach(regime, ours, found)
        rows += fallback(regime, ours, retrained)
    published = [cell for cell in cells if cell["published"]]
    guessed = sum(not _is_timed(cell) for cell in published)
    estimate = (
        f" For {guessed} of the {len(published)} published sets these were not kept, and it is an "
        "estimate: the seconds of the whole set times the unlearners' share of its wall seconds."
    )
    write(
        scales.results("gates").name,
        "Gates against oracles",
        f"python -m benchmarks.oracles{scale.option} && python -m benchmarks.gates{scale.option}",
        [
            f"CIFAR-10, {scale.says}; {len(published)} of {len(cells)} forget "
            "sets published by an approximate rung. Intervals are for one more oracle, 99 %, "
            "before the slack of two points; with it a value counts as inside. Forget sets were "
            f"measured on {_machines(read.values())}; parents were described on "
            f"{_machines(parents.values())}, on all records they were trained on and on all 10 000 "
            "of the test file. The last line on hardware is that of the machine "
            "which wrote this page.",
            f"Time with audits is {scale.time} seconds of all rungs tried, audits included, over "
            "the median of retraining without the same set. Time without audits is those of the "
            f"unlearners alone over the same.{estimate * (guessed > 0)}",
        ],
        rows,
        {"cells": cells, "retrained": retrained, "parents": parents},
    )


def _read(name: str) -> dict[str, Cell]:
    paths = sorted(scales.results(name).glob("*.json"))
    return {path.stem: json.loads(path.read_text()) for path in paths}


def parent_rows(regime: str, figures: Cell | None) -> Iterator[Row]:
    """Say how far a parent memorised, and whether that is what its regime is for."""
    if figures is None:
        yield Row(f"{regime}: parent", "not described yet")
        return
    train, test = figures["train_accuracy"], figures["test_accuracy"]
    asked, met = {
        "memorised": ("train 1.00", round(train, 2) == 1),
        "shipped": ("train 1.00, test 0.77", (round(train, 2), round(test, 2)) == (1, 0.77)),
        "regularised": (f"gap under {100 * GAP:.0f} points", train - test < GAP),
    }[regime]
    yield Row(
        f"{regime}: accuracy of the parent",
        f"train {train:.3f}, test {test:.3f}, gap {100 * (train - test):.1f} points",
        asked,
        met,
    )


def agreement(regime: str, cells: Sequence[Cell], found: Oracles) -> Iterator[Row]:
    """Count values outside: of what was published, and of oracles left out in turn."""
    published = [
        interval.holds(cell["rungs"][-1][measure])
        for cell in cells
        if cell["published"]
        for measure in MEASURES
        if (interval := expected(found, cell["set"], measure)) is not None
    ]
    held = {
        "published values outside the oracles' interval": published,
        "oracles left out in turn, values outside": [ok for _, ok in left_out(found)],
    }
    for what, inside in held.items():
        outside = len(inside) - sum(inside)
        yield Row(
            f"{regime}: {what}",
            f"{outside} of {len(inside)}" if inside else "none to judge",
            "at most 1 in 20",
            outside <= OUTSIDE * len(inside) if inside else None,
        )


def powerless(regime: str, cells: Sequence[Cell]) -> Row:
    """Count the sets without a rung to try: too small, or too little leaned on by the parent."""
    untried = [c for c in cells if all(rung["status"] == "skipped" for rung in c["rungs"])]
    return Row(
        f"{regime}: forget sets where even a perfect model would be refused more often than not",
        f"{len(untried)} of {len(cells)}",
    )


def reach(regime: str, cells: Sequence[Cell], found: Oracles) -> Iterator[Row]:
    """Count the sets that pass on an approximate rung, at any cost and at a quarter of retraining.

    There is no verdict while sets that are not measured yet could turn it.
    """
    count = len(study.forget_sets(regime))

    def half(some: Sequence[Any]) -> bool | None:
        could = len(some) + count - len(cells)
        return True if 2 * len(some) >= count else None if 2 * could >= count else False

    passed = [cell for cell in cells if cell["published"]]
    unmeasured = f", {count - len(cells)} not measured" if len(cells) < count else ""
    what = f"{regime}: forget sets that pass on an approximate rung"
    yield Row(what, f"{len(passed)} of {count}{unmeasured}", "at least half", half(passed))
    parts = {
        "audits included": [with_audits(cell, found) for cell in passed],
        "without audits": [without_audits(cell, found) for cell in passed],
    }
    for part, shares in parts.items():
        known = [share for share in shares if share is not None]
        soon = [share for share in known if share <= REACH]
        took = f"; they took {min(known):.2f} to {max(known):.2f}" if known else ""
        yield Row(
            f"{what} within {100 * REACH:.0f} % of a retraining, {part}",
            f"{len(soon)} of {count}{unmeasured}{took}",
            "at least half",
            half(soon),
        )


def fallback(regime: str, cells: Sequence[Cell], retrained: Retrained) -> Iterator[Row]:
    """Count the sets that retraining published, of those that no approximate rung did."""
    left = [path(regime, cell["set"], exact=True).stem for cell in cells if not cell["published"]]
    tried = [retrained[stem] for stem in left if stem in retrained]
    passed = sum(cell["published"] is not None for cell in tried)
    missing = len(left) - len(tried)
    yield Row(
        f"{regime}: forget sets without such a rung that retraining published",
        f"{passed} of {len(left)}" + (f", {missing} not run here" if missing else ""),
        "all",
        False if passed < len(tried) else None if missing or not left else True,
    )


def with_audits(cell: Cell, found: Oracles) -> float | None:
    """Seconds of all rungs with their audits over the median of retraining."""
    retraining = _retraining(cell, found)
    return None if retraining is None else float(cell[SCALE.get().clock]) / retraining


def without_audits(cell: Cell, found: Oracles) -> float | None:
    """Seconds of all rungs without their audits over the median of retraining.

    Estimated by the share of wall seconds where a cell keeps no CPU seconds of its rungs.
    """
    retraining = _retraining(cell, found)
    if retraining is None:
        return None
    clock = SCALE.get().clock
    if _is_timed(cell):
        return float(sum(rung[clock] for rung in cell["rungs"])) / retraining
    share = sum(rung["seconds"] for rung in cell["rungs"]) / cell["seconds"]
    return float(cell[clock] * share) / retraining


def _is_timed(cell: Cell) -> bool:
    return all(SCALE.get().clock in rung for rung in cell["rungs"])


def _retraining(cell: Cell, found: Oracles) -> float | None:
    trained = found.get(cell["set"], [])
    return statistics.median(each[SCALE.get().clock] for each in trained) if trained else None


def _machines(measured: Any) -> str:
    return "; or ".join(sorted({each["hardware"] for each in measured})) or "none yet"


def of_cell(cell: Cell, found: Oracles, retrained: Retrained) -> Iterator[Row]:
    """Hold what was published against the oracles, or say what became of the set."""
    name = f"{cell['regime']} {cell['set']}"
    last = cell["rungs"][-1] if cell["rungs"] else {}
    cost = _cost(cell, found)
    if cell["published"] is None:
        tried = "; ".join(dict.fromkeys(map(_refused, cell["rungs"])))
        yield Row(f"{name}: no approximate rung", f"{tried or 'too few records to judge'}{cost}")
        exact = retrained.get(path(cell["regime"], cell["set"], exact=True).stem)
        yield Row(f"{name}: retrain", "not run here") if exact is None else _exact(exact, found)
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


def _exact(cell: Cell, found: Oracles) -> Row:
    last = cell["rungs"][-1]
    gates = ", ".join(f"{gate} {verdict}" for gate, (verdict, *_) in last["gates"].items())
    return Row(
        f"{cell['regime']} {cell['set']}: {last['unlearner']['name']}",
        f"{last['status']}: {gates or last['reason']}{_cost(cell, found)}",
        "published",
        last["status"] == "published",
    )


def _cost(cell: Cell, found: Oracles) -> str:
    share = with_audits(cell, found)
    return "" if share is None else f"; {share:.2f} of a retraining"


def _refused(rung: dict[str, Any]) -> str:
    if rung["status"] == "skipped":
        return f"skipped: {rung['reason'].partition('; ')[2]}"
    return f"{rung['unlearner']['name']}: {rung['reason']}"


def _oracles(regime: str) -> Oracles:
    """Set -> one summary per oracle."""
    found: Oracles = {}
    clock = SCALE.get().clock
    for path in sorted(scales.results("oracles").glob(f"{regime}-*.npz")):
        with np.load(path, allow_pickle=False) as arrays:
            figures = oracles.summary(arrays) | {clock: float(arrays[clock])}
        name = re.sub(r"-s\d+$", "", path.stem).removeprefix(f"{regime}-")
        found.setdefault(name, []).append(figures)
    return found


def kind(name: str) -> str:
    """Forget sets of like size share a kind."""
    return re.sub(r"(?<=class)\d+$|-\d+$", "", name)


def expected(found: Oracles, name: str, measure: str, skip: int | None = None) -> Interval | None:
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


def left_out(found: Oracles) -> Iterator[tuple[str, bool]]:
    """Hold every oracle against the others of its set."""
    for name, figures in found.items():
        for index, oracle in enumerate(figures):
            for measure in MEASURES:
                interval = expected(found, name, measure, skip=index)
                if interval is not None:
                    yield name, interval.holds(oracle[measure])
