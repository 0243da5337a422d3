"""The bench: one runner ahead, used once."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from structlog.testing import capture_logs

from app.settings import Settings
from app.store import session as sessions
from tests.worker.test_jobs import find, queue
from worker.jobs import run_job
from worker.spare import Bench
from worker.station import Station
from worker.supervisor import Runner


def test_a_spare_is_handed_out_once(spawn: Callable[[], Runner]) -> None:
    bench = Bench(spawn, ahead=True)
    bench.refill()
    first, second = bench.take(), bench.take()
    assert first.pid != second.pid
    assert first.alive
    assert second.alive


def test_refilling_keeps_a_living_spare(spawn: Callable[[], Runner]) -> None:
    bench = Bench(spawn, ahead=True)
    bench.refill()
    spare = bench._spare
    bench.refill()
    assert bench.take() is spare


def test_a_dead_spare_is_replaced(spawn: Callable[[], Runner]) -> None:
    bench = Bench(spawn, ahead=True)
    bench.refill()
    spare = bench._spare
    assert spare is not None
    spare.kill()
    taken = bench.take()
    assert taken.pid != spare.pid
    assert taken.alive
    assert not spare.scratch.exists()


def test_no_spare_is_kept_when_none_is_wanted(spawn: Callable[[], Runner]) -> None:
    bench = Bench(spawn, ahead=False)
    bench.refill()
    assert bench._spare is None
    assert bench.take().alive


def test_clearing_ends_the_spare(spawn: Callable[[], Runner]) -> None:
    bench = Bench(spawn, ahead=True)
    bench.refill()
    spare = bench._spare
    assert spare is not None
    while not spare.ready:
        time.sleep(0.01)
    bench.clear()
    assert not spare.alive


def test_a_spare_that_cannot_be_started_is_tried_again_later(
    spawn: Callable[[], Runner],
) -> None:
    tries = 0

    def fail() -> Runner:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return spawn()

    bench = Bench(fail, ahead=True)
    with capture_logs() as logs:
        bench.refill()
        bench.refill()
    assert (tries, bench._spare) == (1, None)
    assert [(log["event"], log["reason"]) for log in logs] == [
        ("spare_not_started", os.strerror(errno.EAGAIN))
    ]
    bench._not_before = 0.0
    bench.refill()
    assert bench.take().alive
    assert tries == 2


def test_a_spare_that_dies_is_not_replaced_at_once(spawn: Callable[[], Runner]) -> None:
    bench = Bench(spawn, ahead=True)
    bench.refill()
    spare = bench._spare
    assert spare is not None
    spare.kill()
    bench.refill()
    bench.refill()
    assert bench._spare is None
    assert not spare.scratch.exists()
    bench._not_before = 0.0
    bench.refill()
    assert bench.take().alive


def test_a_spare_that_cannot_be_started_does_not_end_the_job(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither while it runs nor afterwards, and what was made of the spare is removed."""
    sessions.configure(settings.model_copy(update={"spare_runner": True}))
    monkeypatch.setattr("worker.attempt.SETTLED_SECONDS", 0.0)
    here = Station(module="tests.worker.stand_in_ingest")
    monkeypatch.setattr("worker.jobs.station", lambda: here)
    try:
        here.bench.refill()
        before = {*here.home.path.iterdir()}
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        tries = Mock(side_effect=full)
        job_id = queue("nap")
        monkeypatch.setattr("worker.supervisor.subprocess.Popen", tries)
        run_job(job_id)
        assert find(job_id).status == "succeeded"
        assert tries.call_count == 1
        assert {*here.home.path.iterdir()} < before
    finally:
        here.close()


def test_a_runner_without_threads_is_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []
    really_popen = subprocess.Popen

    def popen(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(really_popen(*arguments, **options))
        return started[-1]

    monkeypatch.setattr("worker.supervisor.subprocess.Popen", popen)
    full = RuntimeError("can't start new thread")
    monkeypatch.setattr("worker.supervisor.threading.Thread.start", Mock(side_effect=full))
    (tmp_path / "scratch").mkdir()
    with pytest.raises(OSError, match="no thread"):
        Runner(tmp_path / "scratch", module="tests.worker.stand_in")
    assert [process.returncode is not None for process in started] == [True]
    assert list(tmp_path.iterdir()) == []
