"""What is known to fool a single measure, on the memorised checkpoint: the gates have to refuse it.

Dampening with the fixed alpha of its paper's code forgets a whole class and costs accuracy, and
leaves random records as they were; sixty steps of gradient surgery hide records from the attack
while they are still recognised. Files of finished cells are skipped; a sentinel that takes longer
than ``--minutes`` ends there, and is no refusal. ``--smoke`` takes few records and keeps nothing.

    python -m benchmarks.sentinels [--data FOLDER] [--only NAME ...] [--minutes 30] [--smoke]
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import cifar, gates, scales, study
from benchmarks.hardware import RESULTS, need, parser
from benchmarks.tables import Row, write
from core.ladder import parse
from core.rungs import attempt

FOLDER = RESULTS / "sentinels"
REGIME = "shipped"
FEW = 2000
"""Records of each role in a smoke run."""
_DAMPENING = {"name": "ssd", "estimator": "batch", "alpha": 10.0}


@dataclass(frozen=True)
class Sentinel:
    """An unlearner on a forget set of ``study.forget_sets``, and what it was seen to do there."""

    forget: str
    config: dict[str, Any]
    known: str
    batch_size: int
    steps: int | None = None
    """Where set, as many retained batches are given, and a pass over them is all there is."""


SENTINELS = {
    "dampened-class": Sentinel("class9", _DAMPENING, "costs 8 points of test accuracy", 128),
    "dampened-records": Sentinel("random500", _DAMPENING, "changes nothing", 128),
    "surgery-records": Sentinel(
        "random500",
        {"name": "eupmu", "epochs": 1, "stop": False},
        "AUC 0.49 with forget accuracy 0.95, never-seen 0.77",
        256,
        steps=60,
    ),
}


def main() -> None:
    """Run what is missing, and write the table."""
    options = parser(__doc__)
    options.add_argument("--only", nargs="*", choices=[*SENTINELS], default=[*SENTINELS])
    options.add_argument("--minutes", type=float, default=30.0, help="for each")
    options.add_argument("--smoke", action="store_true", help="few records, nothing is kept")
    args = options.parse_args()
    need(args.data, cifar.TRAIN, cifar.TEST, cifar.CHECKPOINT)
    if args.smoke:
        for name in args.only:
            for row in rows(run(args.data, name, args.minutes, most=FEW)):
                print(f"{row.what}: {row.measured} ({row.asked}: {row.verdict})")
        return
    for name in args.only:
        study.cell(FOLDER / f"{name}.json", partial(run, args.data, name, args.minutes))
    cells = [
        json.loads(path.read_text())
        for path in (FOLDER / f"{name}.json" for name in SENTINELS)
        if path.exists()
    ]
    write(
        "sentinels",
        "What the gates have to refuse",
        "python -m benchmarks.sentinels",
        [
            "CIFAR-10 and its memorised ResNet-18; one rung under the `standard` policy, judged "
            "on never-seen records. In brackets what was known before.",
        ],
        [row for cell in cells for row in rows(cell)],
        {"cells": cells},
    )


def run(data: Path, name: str, minutes: float, most: int | None = None) -> dict[str, Any]:
    """Try one sentinel as a rung; ``most`` bounds the records of each role."""
    sentinel, world = SENTINELS[name], study.world(data, REGIME)
    if most is not None:
        few = torch.arange(most)
        parts = {role: getattr(world, role).take(few) for role in ("train", "tuning", "judging")}
        world = replace(world, **parts)
    spec = study.forget_sets(REGIME)[sentinel.forget]
    chosen = study.mask(world.train, spec)
    case = gates.case_of(
        world,
        study.parent(data, REGIME, scales.cache()),
        chosen,
        spec,
        batch_size=sentinel.batch_size,
        deadline=time.monotonic() + 60 * minutes,
    )
    if sentinel.steps is not None and case.retain is not None:
        count = min(len(case.retain), sentinel.steps * sentinel.batch_size)
        case.retain = case.retain.take(torch.arange(count))
    rung, _ = attempt(case, parse(sentinel.config), 0, 1)
    return {"sentinel": name, "records": len(case.forget), "rung": gates.short(rung)}


def rows(cell: dict[str, Any]) -> Iterator[Row]:
    """Say what became of a sentinel; only a gate's refusal is one."""
    sentinel, rung = SENTINELS[cell["sentinel"]], cell["rung"]
    figures = [f"{rung['status']}, {rung['reason']}"]
    for name in ("forget_accuracy", "auc"):
        if rung[name] is not None:
            figures.append(f"{name.replace('_', ' ')} {rung[name]:.3f}")
    _, drop, _ = rung["gates"].get("utility", (None, None, None))
    if drop is not None:
        figures.append(f"accuracy lost {100 * drop:.1f} points")
    yield Row(
        f"{sentinel.config['name']} on {sentinel.forget} ({sentinel.known})",
        "; ".join(figures),
        "refused",
        rung["status"] == "refused" and rung["reason"].startswith("failed: "),
    )


if __name__ == "__main__":
    main()
