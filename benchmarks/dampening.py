"""One dampening request with stored importance, against the SSD paper's way of doing it.

The paper's code measures the importance of all training records and of the forget set anew for
every request. Ours takes the stored one, measures the forget set, dampens, and recalibrates batch
norm; with everything, it also climbs one rung with audits and gates, the parent's numbers known.
One process, one thread, CPU seconds. Rows without a limit say where they go.

    python -m benchmarks.dampening [--data FOLDER] [--records 50000]
"""

from __future__ import annotations

import copy
import cProfile
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import cifar
from benchmarks.hardware import parser
from benchmarks.importance import reference_pass
from benchmarks.tables import Row, write
from core import importance
from core.data import Records, split_holdout
from core.ladder import parse
from core.report import no_report
from core.rungs import Case, attempt

CPU = torch.device("cpu")
LABEL = 9
ARMS: dict[str, dict[str, Any]] = {
    "batch estimator, alpha 10": {"name": "ssd", "estimator": "batch", "alpha": 10.0},
    "per record, adaptive": {"name": "ssd", "selection": "adaptive"},
    "per record, guarded search": {"name": "ssd"},
}
PHASES = {
    ("_importances", "importances"): "importance of the forget set",
    ("_batchnorm", "settle"): "batch norm measured anew",
    ("_guard", "measure"): "accuracies that the search looks at",
    ("dampening", "__init__"): "ratios of the two importances",
    ("dampening", "select_top"): "weights dampened",
    ("dampening", "select_above"): "weights dampened",
}
"""Module and function -> what it does; none is called within another."""


def main() -> None:
    """Measure and write the table."""
    options = parser(__doc__)
    options.add_argument("--records", type=int, default=50_000)
    args = options.parse_args()
    torch.set_num_threads(1)
    parent = cifar.model(args.data)
    train = cifar.records(args.data, cifar.TRAIN, args.records)
    holdout = cifar.records(args.data, cifar.TEST, 10_000)
    chosen = train.labels.eq(LABEL)
    reference = _timed(lambda: _reference(parent, train, train.take(chosen)))
    rows = [Row("the paper's way: both importances, dampening", f"{reference:.1f} s")]
    raw: dict[str, Any] = {"reference": reference}
    stored: dict[str, importance.Importance] = {}
    for name, config in ARMS.items():
        estimator = "fisher_batch" if config.get("estimator") else "fisher_persample"
        if estimator not in stored:
            stored[estimator] = importance.estimate(
                copy.deepcopy(parent),
                train,
                "fisher_batch" if config.get("estimator") else "fisher_persample",
                batch_size=256,
                device=CPU,
                seed=0,
            )
        case = _case(parent, train, chosen, holdout, stored[estimator])
        attempt(case, parse(config), 0, 1)  # the parent's own numbers, which ``prepare`` has
        start = time.process_time()
        rung, _ = attempt(case, parse(config), 0, 1)
        whole = time.process_time() - start
        alone = whole * rung.seconds / max(rung.seconds + rung.audit_seconds, 1e-9)
        phases = _phases(case, config)
        raw[name] = {"whole": whole, "alone": alone, "status": rung.status, "phases": phases}
        rows += [
            Row(
                f"{name}, without audits",
                f"{alone:.1f} s, {reference / alone:.1f}x",
                ">= 10x",
                reference >= 10 * alone,
            ),
            Row(
                f"{name}, with audits and gates ({rung.status})",
                f"{whole:.1f} s, {reference / whole:.1f}x",
                ">= 3x",
                reference >= 3 * whole,
            ),
            Row(f"{name}, of that", "; ".join(f"{what} {took}" for what, took in phases.items())),
        ]
    write(
        "dampening",
        "A class request by dampening, importance stored",
        "python -m benchmarks.dampening",
        [
            f"{cifar.describe(args.data)}: {len(train)} training records, {int(chosen.sum())} to "
            "forget. The audits look at the forget set, 5 000 retained and 5 000 judging records."
        ],
        rows,
        raw,
    )


def _timed(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def _phases(case: Case, config: dict[str, Any]) -> dict[str, str]:
    """Return CPU seconds and calls of what the unlearner does; audits call none of it."""
    profile = cProfile.Profile(time.process_time)
    profile.runcall(attempt, case, parse(config), 0, 1)
    profile.create_stats()
    return {
        PHASES[place]: f"{cumulative:.1f} s in {calls}"
        for (file, _, function), (_, calls, _, cumulative, _) in profile.stats.items()
        if (place := (Path(file).stem, function)) in PHASES
    }


def _ready(records: Records) -> tuple[Tensor, Tensor]:
    return next(records.batches(len(records)))


def _reference(parent: nn.Module, train: Records, forget: Records) -> None:
    model = copy.deepcopy(parent).requires_grad_(True)
    full = reference_pass(model, *_ready(train))
    ours = reference_pass(model, *_ready(forget))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            chosen = ours[name] > 10 * full[name]
            factor = (full[name] / ours[name]).clamp(max=1)
            parameter[chosen] *= factor[chosen]


def _case(
    parent: nn.Module,
    train: Records,
    chosen: Tensor,
    holdout: Records,
    stored: importance.Importance,
) -> Case:
    is_tuning = split_holdout([str(row) for row in holdout.rows.tolist()], "benchmark")
    forget = train.take(chosen)
    return Case(
        parent=parent,
        fresh=lambda _: copy.deepcopy(parent),
        forget=forget,
        retain=train.take(~chosen),
        tuning=holdout.take(is_tuning),
        judging=holdout.take(~is_tuning),
        recipe=None,
        importance=stored,
        requests={"request": forget.rows.tolist()},
        selector="class",
        forget_classes=frozenset({LABEL}),
        num_classes=10,
        policy="standard",
        seed=0,
        batch_size=256,
        bn_policy="recalibrate",
        device=CPU,
        deadline=math.inf,
        report=no_report,
    )


if __name__ == "__main__":
    main()
