"""A disk without room (T10): uploads are refused and jobs wait; when there is room, all goes on.

On SQLite the database lies on the same disk.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.chaos.rig import running
from tests.chaos.sizes import measured
from tests.chaos.world import PATIENCE_SECONDS

pytestmark = [pytest.mark.chaos, pytest.mark.redis, pytest.mark.timeout(36_000)]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
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
