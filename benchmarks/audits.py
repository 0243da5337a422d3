"""The audit battery on 10 000 records against two plain forward passes over the same records.

The battery is what a rung pays: logits of parent and candidate, then accuracy, loss, the
membership attack with its AUC and KS, sanity, and the gates that judge them. One thread, CPU
seconds, so that whatever else runs on the machine distorts less; rounds alternate.

    python -m benchmarks.audits [--data FOLDER]
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from benchmarks import cifar
from benchmarks.hardware import parser
from benchmarks.tables import Row, median, write
from core import gates
from core.audits import run_all
from core.data import Records
from core.report import no_report
from core.rungs import Case, gather_evidence

BATCH = 256
FORGET, RETAIN, HOLDOUT = 1000, 4000, 5000
ROUNDS = 3
ALLOWED_SECONDS = 2.0
CPU = torch.device("cpu")


def main() -> None:
    """Measure and write the table."""
    data = parser(__doc__).parse_args().data
    torch.set_num_threads(1)
    parent = cifar.model(data)
    candidate = _perturbed(parent)
    records = _roles(data)
    seconds: dict[str, list[float]] = {"two forward passes": [], "logits": [], "judging": []}
    num_findings = 0
    for _ in range(ROUNDS):
        seconds["two forward passes"].append(_timed(lambda: _plain(parent, candidate, records)))
        case = _case(parent, records)
        start = time.process_time()
        evidence = gather_evidence(case, candidate, None)
        middle = time.process_time()
        num_findings = len(run_all(evidence)) + len(gates.judge_all(evidence, exact=False))
        seconds["logits"].append(middle - start)
        seconds["judging"].append(time.process_time() - middle)
    write(
        "audits",
        "Audit battery on 10 000 records",
        "python -m benchmarks.audits",
        [
            f"{cifar.describe(data)}: {FORGET} forget, {RETAIN} retain and {HOLDOUT} holdout "
            f"records; {num_findings} findings and gates. Compared with a plain loop in "
            f"inference mode over the same records, batch {BATCH}, contiguous float32, once with "
            f"the parent and once with the candidate. {ROUNDS} alternating rounds, one thread, "
            "CPU seconds, medians.",
        ],
        _rows(seconds),
        seconds,
    )


def _timed(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def _rows(seconds: dict[str, list[float]]) -> list[Row]:
    forward, logits, judging = (median(times) for times in seconds.values())
    battery = median([a + b for a, b in zip(seconds["logits"], seconds["judging"], strict=True)])
    asked = forward + ALLOWED_SECONDS
    return [
        Row("two plain forward passes", f"{forward:.2f} s"),
        Row("battery: logits of parent and candidate", f"{logits:.2f} s"),
        Row("battery: findings and gates", f"{judging:.2f} s"),
        Row(
            "battery, all of it",
            f"{battery:.2f} s",
            f"<= 2 forward passes + 2 s = {asked:.2f} s",
            battery <= asked,
        ),
    ]


def _perturbed(parent: nn.Module) -> nn.Module:
    """Return a copy whose parameters moved by a hundredth: something to find."""
    candidate = copy.deepcopy(parent)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in candidate.parameters():
            parameter.add_(0.01 * parameter.std(correction=0) * torch.randn_like(parameter))
    return candidate


def _roles(data: Path) -> dict[str, Records]:
    train = cifar.records(data, cifar.TRAIN, FORGET + RETAIN)
    return {
        "forget": train.take(torch.arange(FORGET)),
        "retain": train.take(torch.arange(FORGET, FORGET + RETAIN)),
        "holdout": cifar.records(data, cifar.TEST, HOLDOUT),
    }


def _plain(parent: nn.Module, candidate: nn.Module, records: dict[str, Records]) -> None:
    with torch.inference_mode():
        for model in (parent, candidate):
            for role in records.values():
                for x, _ in role.batches(BATCH):
                    model(x.contiguous())


def _case(parent: nn.Module, records: dict[str, Records]) -> Case:
    return Case(
        parent=copy.deepcopy(parent),
        fresh=lambda _: copy.deepcopy(parent),
        forget=records["forget"],
        retain=records["retain"],
        tuning=None,
        judging=records["holdout"],
        recipe=None,
        importance=None,
        requests={"req_benchmark": records["forget"].rows.tolist()},
        selector="records",
        forget_classes=frozenset(),
        num_classes=10,
        policy="standard",
        seed=0,
        batch_size=BATCH,
        bn_policy="recalibrate",
        device=CPU,
        deadline=math.inf,
        report=no_report,
    )


if __name__ == "__main__":
    main()
