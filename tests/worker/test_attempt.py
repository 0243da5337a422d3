"""Reasons to stop staying with a runner."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from tests.worker.test_lease import Answer, Ledger
from worker.attempt import Draining, _is_full, accompany
from worker.lease import CancelRequested, Heartbeat, LeaseLost
from worker.protocol import Done, Failed, Progress
from worker.supervisor import Runner, RunnerDied

Spawn = Callable[[], Runner]


def run(
    runner: Runner,
    kind: str,
    ledger: Ledger,
    *,
    closing: threading.Event | None = None,
    stall_seconds: float = 60.0,
    settled: Callable[[], None] = lambda: None,
    drain_seconds: float = 0.2,
    **arguments: Any,
) -> Done | Failed:
    runner.give({"kind": kind, "threads": 0, "arguments": {"out": str(runner.out), **arguments}})
    with Heartbeat(ledger.renew, 0.05) as beat:
        return accompany(
            runner,
            beat,
            closing=closing or threading.Event(),
            stall_seconds=stall_seconds,
            settled=settled,
            drain_seconds=drain_seconds,
        )


def wait_until_working(ledger: Ledger) -> None:
    while not any(isinstance(told, Progress) for told in ledger.told):
        time.sleep(0.01)


def test_the_last_word_is_returned_and_progress_stored(spawn: Spawn) -> None:
    ledger = Ledger(Answer())
    assert isinstance(run(spawn(), "steps", ledger, count=3), Done)


def test_a_failure_is_a_last_word_too(spawn: Spawn) -> None:
    event = run(spawn(), "refuse", Ledger(Answer()))
    assert isinstance(event, Failed)


def test_a_runner_that_stalls_is_dead(spawn: Spawn) -> None:
    runner = spawn()
    runner.hear(20.0)
    with pytest.raises(RunnerDied, match="said nothing"):
        run(runner, "hang", Ledger(Answer()), stall_seconds=0.5)


def test_a_cancelled_job_stops(spawn: Spawn) -> None:
    with pytest.raises(CancelRequested):
        run(spawn(), "hang", Ledger(Answer(), Answer(), Answer(cancel=True)))


def test_a_lost_lease_stops_the_work(spawn: Spawn) -> None:
    with pytest.raises(LeaseLost):
        run(spawn(), "hang", Ledger(Answer(), Answer(), Answer(alive=False)))


def test_a_closing_worker_gives_the_job_back(spawn: Spawn) -> None:
    closing = threading.Event()
    closing.set()
    with pytest.raises(Draining):
        run(spawn(), "hang", Ledger(Answer()), closing=closing)


def test_a_closing_worker_finishes_what_is_nearly_done(spawn: Spawn) -> None:
    closing = threading.Event()
    closing.set()
    done = run(spawn(), "steps", Ledger(Answer()), closing=closing, drain_seconds=30.0, count=1)
    assert isinstance(done, Done)


def test_a_runner_that_stops_unasked_is_dead(spawn: Spawn) -> None:
    with pytest.raises(RunnerDied, match="stopped unasked"):
        run(spawn(), "stop", Ledger(Answer()))


def test_a_runner_that_was_asked_by_others_ends_with_its_worker(spawn: Spawn) -> None:
    closing, runner = threading.Event(), spawn()
    closing.set()
    with pytest.raises(Draining):
        run(runner, "stop", Ledger(Answer()), closing=closing, drain_seconds=30.0)


def test_a_killed_runner_is_dead(spawn: Spawn) -> None:
    runner, ledger = spawn(), Ledger(Answer())

    def kill() -> None:
        wait_until_working(ledger)
        os.kill(runner.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(RunnerDied, match="exit status -9"):
        run(runner, "hang", ledger)
    killer.join()


def test_the_bench_is_refilled_once_the_job_is_under_way(spawn: Spawn) -> None:
    closing, calls = threading.Event(), 0

    def settled() -> None:
        nonlocal calls
        calls += 1
        closing.set()

    with pytest.raises(Draining):
        run(spawn(), "hang", Ledger(Answer()), closing=closing, settled=settled)
    assert calls == 1


@pytest.mark.parametrize("free", [0, 2**40])
def test_a_disk_without_room_for_us_is_full(
    free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether all of it is used up, or our share."""
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free))
    probe = MagicMock()
    over_quota = OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
    probe.return_value.__enter__.return_value.write.side_effect = over_quota
    monkeypatch.setattr("tempfile.TemporaryFile", probe)
    assert _is_full(tmp_path)


def test_a_disk_with_room_is_not_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.attempt.LITTLE_BYTES", 1)
    assert not _is_full(tmp_path)
    assert list(tmp_path.iterdir()) == []
