from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.settings import Settings
from app.store import session as sessions
from worker.supervisor import Runner

STAND_IN = "tests.worker.stand_in"


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Callable[..., Runner]]:
    """Start stand-in runners, and end them all after the test."""
    runners: list[Runner] = []

    def start(*, together: bool = False) -> Runner:
        scratch = tmp_path / secrets.token_hex(4)
        scratch.mkdir()
        runners.append(Runner(scratch, threads=1, module=STAND_IN, together=together))
        return runners[-1]

    yield start
    for runner in runners:
        runner.close()


@pytest.fixture
def settings(tmp_path: Path, migrated: Path) -> Iterator[Settings]:
    shutil.copy(migrated, tmp_path / "lethe.db")
    chosen = Settings(
        data_dir=tmp_path,
        torch_threads=0,  # so that the stand-in has no reason to import torch
        spare_runner=False,
        heartbeat_seconds=0.2,
        lease_seconds=30.0,
        retry_backoff_seconds=(0.0,),
    )
    sessions.configure(chosen)
    yield chosen
    sessions.configure(None)
