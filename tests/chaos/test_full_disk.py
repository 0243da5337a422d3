"""A disk without room (T10): uploads are refused and jobs wait; when there is room, all goes on.

On SQLite the database lies on the same disk; on PostgreSQL it gets one of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import psycopg
import pytest

from tests.chaos.conftest import BOTH
from tests.chaos.rig import running
from tests.chaos.sizes import measured
from tests.chaos.world import PATIENCE_SECONDS
from tests.own_servers import own_postgres
from tests.servers import database

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.redis,
    pytest.mark.timeout(36_000),
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root"),
]
REFUSALS = 3


def test_uploads_and_jobs_wait_for_room(tmp_path: Path, redis_url: str, database_url: str) -> None:
    with (
        small_disk(tmp_path / "data"),
        running(tmp_path, database_url, redis_url, quick=True) as rig,
    ):
        filler, blobs = tmp_path / "data" / "filler", tmp_path / "data" / "blobs"
        before = sorted(blobs.rglob("*"))
        fill(filler)
        answer = rig.client.http.post(
            "/datasets",
            data={"metadata": json.dumps({"name": "large"})},
            files={"file": (tmp_path / "tiny.parquet").read_bytes()},
        )
        assert (answer.status_code, answer.json()["code"]) == (507, "insufficient_storage")
        assert sorted(blobs.rglob("*")) == before, "a part of a refused upload was left"
        # Without checkpoints, one of which would fall into the trap instead of the result.
        rig.stack.configure(failpoint="blob.before_rename=full", checkpoint_seconds=600)
        rig.stack.start_worker()
        rig.stack.configure(failpoint="")
        filler.unlink()
        rig.world.ask(1)
        request = next(reversed(rig.world.acknowledged))
        job = rig.client.get(f"/unlearn-requests/{request}")["job_id"]
        waits = ("waiting_on", "storage_full")
        found = rig.client.wait(f"/jobs/{job}", *waits, seconds=PATIENCE_SECONDS)
        assert (found["status"], found["attempt"]) == ("queued", 0)
        measured(full_disks=2, **rig.check())


class Refused(httpx.TransportError):
    """The service answered that it can't take a request now."""


@pytest.mark.parametrize("kind", BOTH)
def test_a_full_database_refuses_requests(kind: str, tmp_path: Path, redis_url: str) -> None:
    refusals = list[httpx.Response]()

    def note(response: httpx.Response) -> None:
        if response.status_code != 202:
            response.read()
            refusals.append(response)
            raise Refused(str(response.status_code))

    def mend() -> None:
        if len(refusals) == REFUSALS:
            filler.unlink()

    with (
        small_database(kind, tmp_path) as (url, disk),
        running(tmp_path, url, redis_url, quick=True) as rig,
    ):
        filler = disk / "filler"
        rig.world.most = 1
        rig.world.alike = 1000
        fill(filler)
        rig.client.http.event_hooks = {"response": [note]}
        # What it has room for in pages and a log of its own it may take.
        while not refusals:
            rig.world.ask(1, mend=mend)
        rig.client.http.event_hooks = {}
        for refusal in refusals:
            body = refusal.json()
            told = (refusal.status_code, body["code"], body["detail"])
            assert told == (503, "database_unavailable", "The database's disk is full.")
        rig.world.ask(1)
        rig.stack.start_worker()
        measured(full_databases=1, refusals=len(refusals), **rig.check())


@contextmanager
def small_database(kind: str, folder: Path) -> Iterator[tuple[str, Path]]:
    """URL of a database whose tables lie on a small disk, and that disk's folder."""
    if kind == "sqlite":
        disk = folder / "data"
        with small_disk(disk):
            yield f"sqlite+pysqlite:///{disk / 'lethe.db'}", disk
        return
    with own_postgres(durable=True) as server:
        home = Path(parse_qs(urlsplit(server).query)["host"][0])
        disk = home.with_name("small")
        with small_disk(disk):
            shutil.chown(disk, home.owner())
            with psycopg.connect(server, autocommit=True) as admin:
                admin.execute(f"create tablespace small location '{disk}'")
                admin.execute("alter role postgres set default_tablespace = small")
            with database(server) as url:
                yield url, disk


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "lethe-chaos", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("nothing can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 2**16)
