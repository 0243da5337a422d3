"""What a runner may use before it is ended: seconds, memory, and room on the disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil

from app.store.jobs import Claim
from app.store.session import settings
from worker.supervisor import Runner, RunnerDied

CONVERT_SECONDS = 120.0
CONVERT_MEMORY = 512 << 20
"""For a conversion, beside twice the size of its file."""

SHARE_OF_MEMORY = 0.9
"""Of the machine or the container, where the settings name no limit."""


SCRATCH_BYTES = 4 << 30
SCRATCH_TIMES = 16
"""Room on the disk, in sizes of the files of the job, beside ``SCRATCH_BYTES``. Two checkpoints
hold weights and moments in fp32, of a model that may have come in half of that; processes that
train together hand each other the records decoded."""


class OverLimit(RunnerDied):
    """The runner was ended for what it used; trying again would not help."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


@dataclass(frozen=True)
class Limits:
    """Bounds of one order."""

    seconds: float
    memory: int
    """Bytes, beyond those in use when the order was given."""
    address_space: int | None = None
    """The same for the kernel to watch; None where libraries reserve far more than they use."""
    file_size: int | None = None
    """Bytes of the largest file that it may write, for the kernel to watch: also of one that
    nobody finds in the folder any more. None where the disk is the bound."""
    scratch: int | None = None
    """Bytes in all its files at once; None where the disk is the bound."""

    def for_child(self) -> dict[str, float | int | None]:
        """What the child sets for itself before it begins."""
        cpu = self.seconds if self.address_space is not None else None
        return {
            "address_space": self.address_space,
            "cpu_seconds": cpu,
            "file_size": self.file_size,
        }


class Watch:
    """Looks at a runner now and then while it works.

    Args:
        runner: has its order.
        limits: of that order; None looks away.
    """

    def __init__(self, runner: Runner, limits: Limits | None) -> None:
        self._runner = runner
        self._limits = limits
        self._began: float | None = None
        self._memory = 0

    def check(self, now: float) -> None:
        """Raise OverLimit if the runner used too much."""
        if self._limits is None or not self._runner.ready:
            return
        if self._began is None:
            self._began, self._memory = now, self._runner.memory
        if now - self._began > self._limits.seconds:
            raise OverLimit("out_of_time", f"not done within {self._limits.seconds:g} s")
        if self._runner.memory - self._memory > self._limits.memory:
            raise OverLimit("out_of_memory", f"more than {self._limits.memory} bytes of memory")
        room = self._limits.scratch
        if room is not None and self._runner.written(room) > room:
            raise OverLimit("output_too_large", f"more than {room} bytes of files")


def of(claim: Claim) -> Limits:
    """Return the limits of the runner that does this job."""
    scratch = settings().max_scratch_bytes or SCRATCH_BYTES + SCRATCH_TIMES * _material(claim)
    if claim.job.kind != "convert":
        given = claim.job.options.get("time_limit_seconds", settings().max_job_seconds)
        seconds = float(given) + settings().overtime_seconds
        memory = settings().max_runner_bytes or most_memory()
        return Limits(seconds, memory, file_size=scratch, scratch=scratch)
    assert claim.version is not None
    size = claim.version.size_bytes
    memory = CONVERT_MEMORY + 2 * size
    # What it writes it has held in memory.
    return Limits(
        CONVERT_SECONDS,
        memory,
        address_space=memory + size,
        file_size=min(memory, scratch),
        scratch=scratch,
    )


def _material(claim: Claim) -> int:
    """Bytes of the files that a job is about."""
    datasets = {
        row.id: row.size_bytes for row in (claim.dataset, claim.holdout, claim.samples) if row
    }
    if claim.version is not None:
        model = claim.version.size_bytes
    else:  # a bank is of a model, whichever version
        model = 0 if claim.model is None else settings().max_model_bytes
    return model + sum(datasets.values())


def most_memory() -> int:
    """Return the bytes that a runner may use where the settings name no limit."""
    total: int = psutil.virtual_memory().total
    try:
        bound = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        bound = "max"
    return int(SHARE_OF_MEMORY * (total if bound == "max" else min(total, int(bound))))
