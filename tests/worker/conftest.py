from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from worker.supervisor import Runner

STAND_IN = "tests.worker.stand_in"


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Callable[[], Runner]]:
    """Start stand-in runners, and end them all after the test."""
    runners: list[Runner] = []

    def start() -> Runner:
        scratch = tmp_path / secrets.token_hex(4)
        scratch.mkdir()
        runners.append(Runner(scratch, threads=1, module=STAND_IN))
        return runners[-1]

    yield start
    for runner in runners:
        runner.close()
