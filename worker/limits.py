"""What a runner may use before it is ended: seconds, and memory."""

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
    """Bytes of the largest file that it may write; None where the disk is the bound."""

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


def of(claim: Claim) -> Limits:
    """Return the limits of the runner that does this job."""
    if claim.job.kind != "convert":
        given = claim.job.options.get("time_limit_seconds", settings().max_job_seconds)
        seconds = float(given) + settings().overtime_seconds
        return Limits(seconds, settings().max_runner_bytes or most_memory())
    assert claim.version is not None
    size = claim.version.size_bytes
    memory = CONVERT_MEMORY + 2 * size
    # What it writes it has held in memory.
    return Limits(CONVERT_SECONDS, memory, address_space=memory + size, file_size=memory)


def most_memory() -> int:
    """Return the bytes that a runner may use where the settings name no limit."""
    total: int = psutil.virtual_memory().total
    try:
        bound = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        bound = "max"
    return int(SHARE_OF_MEMORY * (total if bound == "max" else min(total, int(bound))))
