"""The main job through ``python -m worker.serve``: one process, one folder."""

from __future__ import annotations

import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import story
from tests.e2e.client import Client
from tests.e2e.stack import ROOT, Embedded


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    stack = Embedded(tmp_path_factory.mktemp("service"))
    stack.start()
    yield stack
    stack.stop()


@pytest.mark.slow  # the README's tour takes the same way every day
def test_the_main_job_embedded(service: Embedded, home: Path) -> None:
    with Client(service.url, service.key) as client:
        story.main_job(client, home)


def test_it_stops_cleanly_and_shows_its_key_once(service: Embedded) -> None:
    assert stat.S_IMODE(service.data_dir.stat().st_mode) == 0o700
    key_file = service.data_dir / "bootstrap.key"
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    key = service.key
    with Client(service.url, key) as client:
        models = [model["id"] for model in client.get("/models")["data"]]
    assert service.stop() == {"serve": 0}
    assert not list((service.data_dir / "scratch").iterdir())
    service.start()
    assert (service.folder / "serve.log").read_text().count(key) == 1
    with Client(service.url, key) as client:
        assert [model["id"] for model in client.get("/models")["data"]] == models


def test_a_second_service_on_the_folder_is_refused(service: Embedded) -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "worker.serve", "--port", "0"],
        cwd=ROOT,
        env=dict(service.environment),
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 1
    assert "another service uses" in answer.stderr


def test_a_broker_is_refused(tmp_path: Path) -> None:
    stack = Embedded(tmp_path, broker_url="redis://127.0.0.1:1/0")
    answer = subprocess.run(
        [sys.executable, "-m", "worker.serve"],
        cwd=ROOT,
        env=dict(stack.environment),
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 1
    assert "celery -A worker.main worker" in answer.stderr
