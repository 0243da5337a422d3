"""Runners whose trainings several processes share, behind the same walls."""

from __future__ import annotations

import os
import secrets
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from core.ingest import ingest
from tests.core import cases
from tests.worker.test_supervisor import gone
from tests.worlds import write_dataset
from worker import sandbox
from worker.protocol import Done, Event, Failed, Interrupted
from worker.supervisor import Runner, RunnerDied

Start = Callable[..., Runner]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="Landlock, seccomp, namespaces")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start runners that may train together, with an oracle to train."""
    world = cases.small_world()
    records = tmp_path / "records"
    records.mkdir()
    ingest(source=write_dataset(world, tmp_path / "upload"), out=records, max_records=10_000)
    runners: list[Runner] = []

    def start(*, epochs: int, processes: int = 2, together: bool = True) -> Runner:
        scratch = tmp_path / secrets.token_hex(4)
        scratch.mkdir()
        runner = Runner(scratch, threads=1, together=together)
        runners.append(runner)
        (runner.inbox / "records.parquet").write_bytes((records / "records.parquet").read_bytes())
        recipe = world.recipe.model_dump(mode="json") | {"epochs": epochs}
        arguments: dict[str, Any] = {
            "out": str(runner.out),
            "architecture": world.architecture,
            "preprocessing": {},
            "dataset": str(runner.inbox / "records.parquet"),
            "recipe": recipe,
            "excluded": [],
            "seed": 1,
            "time_limit_seconds": 3600.0,
            "device": "cpu",
            "processes": processes,
        }
        keeping = {"seconds": 3600.0, "found": None}
        order = {"kind": "oracle", "threads": 1, "arguments": arguments, "checkpoints": keeping}
        runner.give(order)
        return runner

    yield start
    for runner in runners:
        runner.close()


def helper_of(runner: Runner) -> psutil.Process:
    """Wait until steps are taken, and return the other process that takes them."""
    while True:
        event = runner.hear(600.0)
        assert event is not None
        assert event.event in ("ready", "progress"), event
        if event.event == "progress" and event.phase == "training":
            return next(
                child
                for child in psutil.Process(runner.pid).children()
                if "spawn_main" in " ".join(child.cmdline())
            )


def end_of(runner: Runner) -> Event:
    while True:
        event = runner.hear(600.0)
        assert event is not None
        if isinstance(event, Done | Failed | Interrupted):
            return event


@LINUX
def test_two_processes_train_behind_the_walls(start: Start) -> None:
    runner = start(epochs=2)
    done = end_of(runner)
    assert isinstance(done, Done), (done, runner.stderr)
    told = done.result["processes"]
    assert (told["asked"], told["used"], told["backend"], told["reason"]) == (2, 2, "gloo", None)
    assert "2 processes of 1 threads" in told["determinism"]
    assert sandbox.level(runner.walls) in ("L1", "L2")


@LINUX
@pytest.mark.slow
def test_where_the_walls_leave_no_room_to_talk_one_process_trains(start: Start) -> None:
    runner = start(epochs=1, together=False)
    done = end_of(runner)
    assert isinstance(done, Done), (done, runner.stderr)
    assert done.result["processes"]["used"] == 1
    assert "can't talk" in done.result["processes"]["reason"]


@pytest.mark.slow
def test_the_death_of_one_process_fails_the_job_and_may_be_tried_again(start: Start) -> None:
    runner = start(epochs=10_000)
    helper = helper_of(runner)
    os.kill(helper.pid, signal.SIGKILL)
    failed = end_of(runner)
    assert isinstance(failed, Failed)
    assert (failed.code, failed.retryable) == ("training_process_died", True)
    assert "SIGKILL" in failed.detail


@pytest.mark.slow
def test_an_interrupted_training_keeps_its_state_and_no_process(start: Start) -> None:
    runner = start(epochs=10_000)
    helper = helper_of(runner)
    runner.interrupt()
    kept = runner.hear(600.0)
    while kept is not None and kept.event == "progress":
        kept = runner.hear(600.0)
    assert kept is not None
    assert kept.event == "checkpoint"
    assert isinstance(end_of(runner), Interrupted)
    assert gone(helper.pid)


@pytest.mark.parametrize("how", ["kill", "runner", "supervisor's pipe"])
@pytest.mark.slow
def test_no_process_is_left_behind(start: Start, how: str) -> None:
    runner = start(epochs=10_000)
    helper = helper_of(runner)
    assert os.getpgid(helper.pid) == runner.pid, "whoever kills the group kills it, too"
    if how == "kill":
        helper.suspend()  # it hears nothing any more
        runner.kill(term_seconds=0.5)
    elif how == "runner":
        os.kill(runner.pid, signal.SIGKILL)
        with pytest.raises(RunnerDied):
            end_of(runner)
    else:
        assert runner._process.stdin is not None
        runner._process.stdin.close()
    assert gone(helper.pid)
