"""The API killed in bursts, workers that freeze, and a database that dies."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import psutil
import pytest

from tests.chaos.rig import Rig, running
from tests.chaos.sizes import first, measured, strikes
from tests.e2e.client import Client
from tests.own_servers import answers, own_postgres
from tests.servers import database

pytestmark = [pytest.mark.chaos, pytest.mark.redis, pytest.mark.timeout(36_000)]

PATIENCE_SECONDS = 300.0
PROMISED_RETURN_SECONDS = 10.0
"""From a database's answering again to that of the service."""
POST_SECONDS = 0.5
"""Between two requests while the database is away and comes back."""


def test_the_api_killed(rig: Rig) -> None:
    """T3: every answer that was given is kept, and what is sent again exists once."""
    rng, kills = random.Random(first()), strikes(few=2)
    rig.world.most = 1
    for _ in range(kills):
        mended = rig.mended
        kill = (rig.stack.send_signal, ["api", signal.SIGKILL])
        killer = threading.Timer(rng.uniform(0.0, 0.3), *kill)
        killer.start()
        rig.world.ask(3, mend=rig.mend_api)
        killer.join()
        if rig.mended == mended:
            rig.mend_api()
    assert rig.mended == kills
    rig.stack.start_worker()
    measured(kills=kills, **rig.check())


def test_frozen_workers(rig: Rig) -> None:
    """T6: a worker that stands still beyond its lease changes nothing when it goes on."""
    counts, zombies = {"requests": 0}, strikes(few=1)
    for _ in range(zombies):
        rig.stack.configure(failpoint="worker.in_training=stop")
        rig.stack.start_worker("zombie")
        rig.stack.configure(failpoint="")
        rig.world.ask(1)
        wait_until_stopped(rig.stack.processes["zombie"].pid)
        while not rig.can_write():
            # One of its threads has SQLite's only lock, and nothing can go on until it does.
            rig.stack.send_signal("zombie", signal.SIGCONT)
            rig.stack.send_signal("zombie", signal.SIGSTOP)
        rig.stack.start_worker()
        rig.nemesis.rest()
        rig.stack.send_signal("zombie", signal.SIGCONT)
        rig.stack.wait_for_line("zombie", "lease_lost")
        rig.stop_worker("zombie")
        counts = rig.check()
    measured(zombies=zombies, **counts)


def wait_until_stopped(pid: int) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
        assert time.monotonic() < deadline, "the worker never came to its failpoint"
        time.sleep(0.05)


def test_the_database_is_stopped_at_once(tmp_path: Path, redis_url: str) -> None:
    """T5: an immediate stop under load; jobs go on, every answer was kept, and all is soon back."""
    stops, answered, back = strikes(few=1), Counter[int](), []
    with (
        own_postgres(durable=True) as url,
        Restartable(url) as server,
        database(url) as made,
        running(tmp_path, made, redis_url, quick=True) as rig,
        Client(rig.stack.url, rig.stack.key) as reader,
    ):
        rig.world.most = 1
        rig.stack.start_worker()
        for _ in range(stops):
            with posting(rig, answered):
                time.sleep(1.0)
                server.stop()
                answer = reader.http.get("/jobs")
                assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
                assert reader.http.get("/healthz").status_code == 200
                assert reader.http.get("/readyz").status_code == 503
                server.start()
                started = time.monotonic()
                rig.stack.wait_until("/readyz")
                back.append(time.monotonic() - started)
        counts = rig.check()
    assert {*answered} <= {202, 503}
    assert answered[202] == counts["requests"]
    assert max(back) <= PROMISED_RETURN_SECONDS
    measured(
        stops=stops,
        posts_answered_202=answered[202],
        posts_answered_503=answered[503],
        longest_return_seconds=round(max(back), 1),
        **counts,
    )


class Refused(httpx.TransportError):
    """The service answered that it can't answer now."""


@contextmanager
def posting(rig: Rig, answered: Counter[int]) -> Iterator[None]:
    """Post requests meanwhile, each until it is taken, and at least one; count the answers.

    Nothing but an answer is let pass: the API lives, and says what it lacks.
    """
    enough = threading.Event()

    def note(response: httpx.Response) -> None:
        answered[response.status_code] += 1
        if response.status_code == 503:
            raise Refused("503")

    def wait() -> None:
        nonlocal waits
        waits += 1
        time.sleep(POST_SECONDS / 10)

    def post() -> None:
        rig.world.ask(1, mend=wait)
        while not enough.wait(POST_SECONDS):
            rig.world.ask(1, mend=wait)

    refused, waits = answered[503], 0
    hooks = rig.client.http.event_hooks
    rig.client.http.event_hooks = {"response": [note]}
    try:
        with ThreadPoolExecutor(1) as pool:
            poster = pool.submit(post)
            try:
                yield
            finally:
                enough.set()
            poster.result()
    finally:
        rig.client.http.event_hooks = hooks
    assert waits == answered[503] - refused, "a call had no answer at all"


class Restartable:
    """A PostgreSQL of our own that is stopped as ``pg_ctl stop -m immediate`` does.

    Args:
        url: of the running server.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._data = Path(parse_qs(urlsplit(url).query)["host"][0])
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Restartable:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)

    def stop(self) -> None:
        """End every one of its processes, without a checkpoint."""
        pid = int((self._data / "postmaster.pid").read_text().splitlines()[0])
        os.kill(pid, signal.SIGQUIT)
        if self._process is not None:
            self._process.wait(30)
        while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.05)

    def start(self) -> None:
        """Start it again, and wait until it answers."""
        (binary,) = self._data.parent.glob("packages/*/*/bin/postgres")
        user = "nobody" if os.geteuid() == 0 else None
        arguments = ["-D", self._data, "-k", self._data, "-h", ""]
        self._process = subprocess.Popen([binary, *arguments], user=user, cwd=self._data)
        while not answers(self._url):
            time.sleep(0.05)
