"""A disk without room: a real one, small and full, mounted where only the test sees it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.own_servers import ROOT

ISOLATED = ["unshare", "--map-root-user", "--mount"]


@pytest.fixture(scope="module")
def isolated() -> list[str]:
    """Command that runs another one in a mount namespace; a skip where that is not allowed."""
    probe = [*ISOLATED, "sh", "-c", "mount -t tmpfs tmpfs /mnt"]
    if shutil.which("unshare") is None or subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    return ISOLATED


@pytest.mark.parametrize("store", ["folder", pytest.param("bucket", marks=pytest.mark.slow)])
def test_a_full_disk_is_named_and_nothing_stays_half_done(
    store: str, isolated: list[str], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    settings: dict[str, Any] = {
        "data_dir": str(data),
        "database_url": f"sqlite+pysqlite:///{tmp_path}/lethe.db",
        "pepper": "p" * 40,
        "spare_runner": False,
    }
    if store == "bucket":
        settings |= request.getfixturevalue("s3_settings")
    done = subprocess.run(
        [*isolated, sys.executable, "-m", "tests.full_disk", json.dumps(settings)],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert "all is well" in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]
