"""A training by several processes of one machine, started by torch's own launcher.

The process that asks for it is the first of them: it alone shows progress, keeps checkpoints and
watches the time. The others get copies of everything through a private folder, take the same steps,
and end when it does, however it ends.

What is interrupted goes on with as many as there are then; with as many as before, it is bit for
bit what it would have been. That holds for each model of a bank, too. The members of an ensemble
(``core.sisa``), what pruners train and ``msg`` are left to one process.

``torch.multiprocessing`` launches them and not ``torchrun``, whose agent gives each a session of
its own, out of reach of whoever has to kill them all, and listens for others on the network.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
import torch.multiprocessing

from . import batchnorm
from .assist import Work, assist, place
from .course import Course
from .data import num_batches
from .errors import ProcessDied
from .findings import Processes
from .group import Group, Parted, Word, backend
from .registry import Config
from .step import ExtraLoss

LEAST_SHARE = 16
"""Records of a batch in each process, where batch norm learns: it normalises by these alone."""

START_SECONDS = 600.0
"""How long the processes may take to import and to read their work."""

_END_SECONDS = 30.0
_LOOK_SECONDS = 0.1
_LEFT_BEHIND = 70


@dataclass
class Team:
    """How many processes may share the trainings of a network, and what came of it."""

    size: int = 1
    network: Config | None = None
    """What the other processes build."""
    told: list[Processes] = field(default_factory=list)
    """One entry for each training."""

    def summary(self) -> Processes | None:
        """What is told of all trainings together; None if one process was all that was asked."""
        if self.size == 1:
            return None
        if not self.told:
            reason = "its computation is not shared among processes"
            return Processes(asked=self.size, used=1, reason=reason)
        reasons = dict.fromkeys(each.reason for each in self.told if each.reason is not None)
        return min(self.told, key=lambda each: each.used).model_copy(
            update={"reason": "; ".join(reasons) or None}
        )


def team_size(asked: int, device: torch.device) -> int:
    """Return how many processes to ask for: 0 means one for each accelerator, or one."""
    if asked > 0:
        return asked
    return max(1, _accelerators(device)) if device.type == "cuda" else 1


def decide(team: Team, course: Course, extra_loss: ExtraLoss | None) -> int:
    """Return how many processes take the rest of the way, and tell the team."""
    if team.size == 1:
        return 1
    begun = course.processes
    size, reason = _fitting(team, course)
    if extra_loss is not None:
        size, reason = 1, "its loss looks at more than the records of a batch"
    if course.done and begun != size:
        also = f"its first {course.done} steps were taken by {begun}"
        reason = also if reason is None else f"{reason}; {also}"
    course.processes = size
    told = Processes(asked=team.size, used=size, reason=reason)
    if size > 1:
        carrier, promise = backend(course.device), _promise(course, size)
        told = told.model_copy(update={"backend": carrier, "determinism": promise})
    team.told.append(told)
    return size


def _fitting(team: Team, course: Course) -> tuple[int, str | None]:
    """Return how many processes can share this training, and why not all that were asked for."""
    if team.network is None:
        return 1, "the network has no description that others could build it from"
    if not _may_talk():
        return 1, "the processes of a runner can't talk to each other on this machine"
    used, reason = team.size, None
    if course.device.type == "cuda" and (most := _accelerators(course.device)) < used:
        used, reason = most, f"{most} accelerators are in reach"
    least = LEAST_SHARE if batchnorm.learns(course.model) else 1
    smallest = len(course.records) // num_batches(len(course.records), course.recipe.batch_size)
    if (most := max(1, smallest // least)) < used:
        used, reason = most, f"a share of a batch would be below {least} records"
    return used, reason


def _promise(course: Course, size: int) -> str:
    if course.device.type == "cuda":
        said = "accelerators do not promise the same bits"
    else:
        said = f"the same bits take the same CPU, and {size} processes of {_threads(size)} threads"
    if batchnorm.learns(course.model):
        said += "; batch norm normalised each share of a batch by itself"
    return said


def _threads(size: int) -> int:
    """Threads of each process: together as many as this one has alone."""
    return max(1, torch.get_num_threads() // size)


@contextmanager
def gathered(
    size: int, work: Callable[[int], Work], device: torch.device, check_time: Callable[[], None]
) -> Iterator[Group | None]:
    """Have ``size`` - 1 processes share the training in the block; None for one process.

    Args:
        size: how many train, this one included.
        work: told the threads of each process, returns what the others need.
        device: of this process.
        check_time: called while they start; raises to stop.

    Raises:
        ProcessDied: if one of them ended before its time.
        MemoryError, torch.OutOfMemoryError: if one of them has too little memory.
    """
    if size == 1:
        yield None
        return
    threads = torch.get_num_threads()
    each = _threads(size)
    with tempfile.TemporaryDirectory(prefix="team-") as name:
        work(each).write(Path(name))
        context = torch.multiprocessing.spawn(  # type: ignore[attr-defined]  # it has no __all__
            serve, (name, size), nprocs=size - 1, join=False
        )
        try:
            torch.set_num_threads(each)
            _await(context.processes, Path(name), check_time)
            group = Group(Path(name), 0, size, device)
            with group.at_work():
                yield group
        except Parted as parted:
            if parted.word is Word.MEMORY:
                kind = torch.OutOfMemoryError if device.type == "cuda" else MemoryError
                raise kind("another process of the training has too little memory") from None
            raise ProcessDied(_end_of(context.processes)) from parted
        finally:
            torch.set_num_threads(threads)
            _dismiss(context.processes)


def serve(index: int, name: str, size: int) -> None:
    """Be one of the other processes, from its start to its end."""
    _end_with_parent()
    folder, rank = Path(name), index + 1
    work = Work.read(folder)
    torch.set_num_threads(work.order.threads)
    device = place(work.order, rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    _ready(folder, rank).touch()
    status = 0
    try:
        group = Group(folder, rank, size, device)
        with group.at_work():
            assist(work, group)
    except Parted:
        pass  # the first process knows why
    except BaseException:  # noqa: BLE001  # the edge of the process: said, never hidden
        traceback.print_exc()
        status = 1
    sys.stderr.flush()
    # Skips interpreter teardown, which takes long with torch loaded and has nothing left to save.
    os._exit(status)


def _await(processes: list[BaseProcess], folder: Path, check_time: Callable[[], None]) -> None:
    """Wait until all processes have read their work; only then is it sure that they meet."""
    deadline = time.monotonic() + START_SECONDS
    while not all(_ready(folder, rank).exists() for rank in range(1, len(processes) + 1)):
        check_time()
        if wait([process.sentinel for process in processes], timeout=_LOOK_SECONDS):
            raise ProcessDied(_end_of(processes))
        if time.monotonic() > deadline:
            raise ProcessDied(f"a process was not ready within {START_SECONDS:g} s")


def _ready(folder: Path, rank: int) -> Path:
    return folder / f"ready-{rank}"


def _end_of(processes: list[BaseProcess]) -> str:
    """Say which process ended before its time, and how."""
    wait([process.sentinel for process in processes], timeout=_END_SECONDS)
    size = len(processes) + 1
    for number, process in enumerate(processes, 2):
        process.join(_LOOK_SECONDS)
        status = process.exitcode
        if status:
            how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
            return f"process {number} of {size} of a training ended: {how}"
    return f"the {size} processes of a training lost each other"


def _dismiss(processes: list[BaseProcess]) -> None:
    """Wait for the end of all; kill those that do not end by themselves."""
    deadline = time.monotonic() + _END_SECONDS
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.exitcode is None:
            with suppress(PermissionError):  # in a sandbox, whoever built it kills them all
                process.kill()
                process.join()


def _end_with_parent() -> None:
    """Leave the process as soon as the one that started it is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(_LEFT_BEHIND)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def _accelerators(device: torch.device) -> int:
    return 1 if device.index is not None else torch.cuda.device_count()


def _may_talk() -> bool:
    """Whether this process may listen on this machine's own address; walls may forbid it."""
    try:
        with socket.create_server(("127.0.0.1", 0)):
            return True
    except OSError:
        return False
