"""Importance: images per second and peak memory against a plain loop that calls backward per batch.

The reference is the loop of the SSD paper's code (fp32, contiguous, zero_grad, backward, squared
``.grad`` added to a zero-filled tensor per parameter, eval mode), over a ready normalised tensor
instead of a DataLoader, so that only the computation is compared; ours starts from the stored
uint8 records and takes their digests as well. Each arm is a process of its own with one thread; CPU
seconds are counted, so that whatever else runs on the machine distorts less; rounds alternate
between the arms and the medians of the per-round ratios are reported.

    python -m benchmarks.importance [--data FOLDER]
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

import psutil
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import cifar
from benchmarks.hardware import describe, parser
from benchmarks.tables import Row, median, write
from core.data import Records
from core.importance import Importance, agreement, estimate
from core.situation import Estimator

BATCH = 128
RECORDS = 2048
ROUNDS = 3
FORGET, SAMPLE = 64, 192
MATRIX_UNITS = "amx_bf16"
"""The flag of matrix units; ``avx512_bf16`` is a dot product of vectors, and none."""
FRACTIONS = (0.001, 0.01, 0.02, 0.1)
CPU = torch.device("cpu")
Pass = Callable[[], object]
Mode = Literal["fp32", "bf16", "auto"]
OURS: dict[str, tuple[Estimator, Mode]] = {
    "fisher_batch fp32": ("fisher_batch", "fp32"),
    "fisher_batch bf16": ("fisher_batch", "bf16"),
    "fisher_persample fp32": ("fisher_persample", "fp32"),
    "fisher_persample bf16": ("fisher_persample", "bf16"),
}
REFERENCE = "reference"


def reference_pass(model: nn.Module, x_NCHW: Tensor, y_N: Tensor) -> dict[str, Tensor]:
    """Return the batch Fisher as the paper's code computes it."""
    importances = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for x, y in zip(torch.split(x_NCHW, BATCH), torch.split(y_N, BATCH), strict=True):
        model.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()  # type: ignore[no-untyped-call]  # untyped in torch
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                importances[name].data += parameter.grad.data.clone().pow(2)
    for value in importances.values():
        value.data /= float(-(-len(x_NCHW) // BATCH))
    return importances


def main() -> None:
    """Measure all arms and write the table."""
    data = parser(__doc__).parse_args().data
    torch.set_num_threads(1)
    print(describe(), flush=True)
    seconds, memory = race(data)
    agreements = {e: bf16_agreement(data, e) for e in ("fisher_batch", "fisher_persample")}
    has_units = MATRIX_UNITS in describe()
    write(
        "importance",
        "Importance pass of ResNet-18 at 32x32",
        "python -m benchmarks.importance",
        [
            f"{cifar.describe(data)}: {RECORDS} records, batch {BATCH}, {ROUNDS} rounds that "
            "alternate between the arms, each arm a process of its own with one thread, CPU "
            "seconds, medians. Compared with the plain loop of the SSD paper's code over a ready "
            "normalised tensor (no DataLoader, which favours it); ours normalises from uint8 and "
            "hashes records and weights within the measured time.",
            "Peak memory is the high-water mark of resident memory of the process from before its "
            "first pass to after its last, less what was resident before (model and data loaded). "
            "Agreement is the share of the weights selected by the ratio of the importance of "
            f"{FORGET} records of one class to that of {SAMPLE} mixed records that the float64 "
            "pass selects as well, at several selected fractions.",
            "Twice the reference's rate is asked where the CPU has bf16 matrix units "
            f"({MATRIX_UNITS}; this one has {'them' if has_units else 'none'}), 1.2 times "
            "elsewhere; avx512_bf16 does not count, it is a dot product of vectors.",
        ],
        rows(seconds, memory, agreements, has_units=has_units),
        {"seconds": seconds, "peak_bytes": memory, "bf16_agreement": agreements},
    )


def race(data: Path) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Return the seconds of each round and the peak memory of every arm."""
    context = multiprocessing.get_context("spawn")
    arms = {}
    for arm in (REFERENCE, *OURS):
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(arm, data, theirs), daemon=True)
        process.start()
        ours.recv()
        arms[arm] = (process, ours)
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    for _ in range(ROUNDS):
        for arm, (_, pipe) in arms.items():
            pipe.send(True)
            seconds[arm].append(pipe.recv())
    memory = {}
    for arm, (process, pipe) in arms.items():
        pipe.send(False)
        memory[arm] = pipe.recv()
        process.join()
    return seconds, memory


def _serve(arm: str, data: Path, pipe: Connection) -> None:
    """Run passes on demand, then tell the peak memory."""
    torch.set_num_threads(1)
    warm_up, once = _prepare(arm, data, BATCH), _prepare(arm, data, RECORDS)
    before = psutil.Process().memory_info().rss
    warm_up()
    pipe.send(True)
    while pipe.recv():
        start = time.process_time()
        once()
        pipe.send(time.process_time() - start)
    pipe.send(high_water() - before)


def high_water() -> int:
    """Return the most memory that was resident so far; ``ru_maxrss`` would count the parent's."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM in /proc/self/status")


def _prepare(arm: str, data: Path, count: int) -> Pass:
    records = cifar.records(data, cifar.TRAIN, count)
    model = cifar.model(data)
    if arm == REFERENCE:
        x, y = (torch.cat(part) for part in zip(*records.batches(BATCH), strict=True))
        x = x.contiguous()
        return lambda: reference_pass(model, x, y)
    estimator, mode = OURS[arm]
    return lambda: _ours(model, records, estimator, mode)


def _ours(model: nn.Module, records: Records, estimator: Estimator, mode: Mode) -> Importance:
    return estimate(model, records, estimator, batch_size=BATCH, device=CPU, precision=mode)


def bf16_agreement(data: Path, estimator: Estimator) -> dict[str, float]:
    """Share of the weights that bf16 and float64 select alike, per selected fraction."""
    pool = cifar.records(data, cifar.TRAIN, 4096, seed=1)
    of_class = (pool.labels == 9).nonzero().flatten()[:FORGET]
    forget, sample = pool.take(of_class), pool.take(torch.arange(SAMPLE))
    model = cifar.model(data)
    exact = cifar.model(data).double()
    ratios = []
    for network, mode in ((model, "bf16"), (exact, "fp64")):
        of_forget, of_sample = (
            _selection(network, part, estimator, mode) for part in (forget, sample)
        )
        ratios.append(torch.nan_to_num(of_forget / of_sample, nan=0.0))
    return {f"{share:g}": agreement(ratios[0], ratios[1], share) for share in FRACTIONS}


def _selection(model: nn.Module, records: Records, estimator: Estimator, mode: str) -> Tensor:
    if mode == "bf16":
        values = _ours(model, records, estimator, "bf16").values.values()
        return torch.cat([value.flatten().double() for value in values])
    return exact_pass(model, records, estimator)


def exact_pass(model: nn.Module, records: Records, estimator: Estimator) -> Tensor:
    """Return the importance computed in float64 by one plain backward per batch or record."""
    step = BATCH if estimator == "fisher_batch" else 1
    parameters = list(model.parameters())
    total = [torch.zeros_like(p) for p in parameters]
    count = 0
    for x, y in records.batches(step):
        loss = F.cross_entropy(model(x.double()), y)
        for account, gradient in zip(total, torch.autograd.grad(loss, parameters), strict=True):
            account.add_(gradient.square())
        count += 1
    return torch.cat([account.flatten() / count for account in total])


def rows(
    seconds: dict[str, list[float]],
    memory: dict[str, int],
    agreements: dict[str, dict[str, float]],
    *,
    has_units: bool,
) -> list[Row]:
    """Put what was measured beside what is asked.

    Args:
        seconds: arm -> CPU seconds of its rounds.
        memory: arm -> bytes.
        agreements: estimator -> share of the weights that bf16 selects alike, per fraction.
        has_units: whether the CPU has bf16 matrix units.
    """
    made = [
        Row(
            f"{arm}: images per CPU second; peak memory",
            f"{RECORDS / median(times):.0f}; {memory[arm] / 2**20:.0f} MiB",
        )
        for arm, times in seconds.items()
    ]
    allowed = {e: min(found.values()) >= 0.99 for e, found in agreements.items()}
    for estimator, found in agreements.items():
        text = ", ".join(f"{100 * value:.1f} % of the top {k}" for k, value in found.items())
        verb = "may be used" if allowed[estimator] else "is not used"
        what = f"{estimator}: bf16 agrees with float64; it {verb} (99 % are needed)"
        made.append(Row(what, text))
    mode = "bf16" if allowed["fisher_batch"] else "fp32"
    least = 2.0 if has_units else 1.2
    for arm in OURS:
        ratio = _ratio(seconds, REFERENCE, arm)
        asked = arm == f"fisher_batch {mode}"
        bound = ""
        if asked and ratio < least and mode == "fp32":
            bf16 = _ratio(seconds, REFERENCE, "fisher_batch bf16")
            bound = f" in fp32; bf16 ({bf16:.2f}x) is not used: it selects other weights"
        made.append(
            Row(
                f"{arm} v. reference, images/s",
                f"{ratio:.2f}x{bound}",
                f">= {least:g}x" if asked else "",
                ratio >= least if asked else None,
            )
        )
    for mode in ("fp32", "bf16"):
        cost = _ratio(seconds, f"fisher_persample {mode}", f"fisher_batch {mode}")
        asked = mode == "fp32" or allowed["fisher_persample"]
        made.append(
            Row(
                f"cost of fisher_persample v. fisher_batch, {mode}",
                f"{cost:.2f}x",
                "<= 1.5x" if asked else "",
                cost <= 1.5 if asked else None,
            )
        )
    return made


def _ratio(seconds: dict[str, list[float]], slow: str, fast: str) -> float:
    return median([a / b for a, b in zip(seconds[slow], seconds[fast], strict=True)])


if __name__ == "__main__":
    main()
