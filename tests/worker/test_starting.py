"""A worker that lacks something does not start: Celery would hide the error and go on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from sqlalchemy.exc import OperationalError

from app.settings import Settings
from app.store import session
from worker import capacity, main
from worker.station import Station


class Solo:
    """The pool that a worker asks for."""

    class pool_cls:  # Celery's name
        __module__ = "celery.concurrency.solo"


@pytest.mark.parametrize("handler", [main.refuse_to_start, main.open_station])
def test_an_error_at_the_start_ends_the_process(
    monkeypatch: pytest.MonkeyPatch, handler: Any
) -> None:
    def away() -> None:
        raise ConnectionError("the database is away")

    monkeypatch.setattr(main, "at_head", away)
    monkeypatch.setattr(main, "station", away)
    with pytest.raises(SystemExit) as ended:
        handler(sender=Solo)
    assert ended.value.code == 1


def test_a_database_that_is_away_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = Mock(side_effect=[OperationalError("", None, Exception()), True])
    monkeypatch.setattr(main, "at_head", answers)
    monkeypatch.setattr(main.keyed, "pepper_fault", Mock(return_value=None))
    monkeypatch.setattr(main, "station", Mock())
    main.refuse_to_start(sender=Solo)
    assert answers.call_count == 2


def test_what_fails_at_the_start_is_logged_without_values(tmp_path: Path) -> None:
    """Not as structlog would by itself, with the variables of every function on the way."""
    (tmp_path / "lethe.db").write_text("no database, but somebody's words")
    ended = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "worker.main", "worker"],
        env={**os.environ, "LETHE_DATA_DIR": str(tmp_path), "LETHE_BROKER_URL": "redis://nowhere"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 1
    (line,) = ended.stdout.splitlines()
    assert json.loads(line)["event"] == "worker_not_started"
    assert "Traceback" not in ended.stderr


def test_an_accelerator_that_does_not_answer_has_no_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    def hang(command: list[str], **options: Any) -> None:
        raise subprocess.TimeoutExpired(command, options["timeout"])

    session.configure(Settings(data_dir=tmp_path))
    monkeypatch.setattr(capacity, "_has_accelerator", lambda: True)
    monkeypatch.setattr(subprocess, "run", hang)
    try:
        assert capacity.memory() is None
    finally:
        session.configure(None)


@pytest.mark.parametrize("needs", [("gpu",), ("cpu",)])
def test_a_worker_that_computes_does_not_start_without_the_named_accelerator(
    settings: Settings, needs: Any
) -> None:
    session.configure(settings.model_copy(update={"device": "cuda:99", "worker_needs": needs}))
    if "gpu" not in needs:
        Station().close()
        return
    with pytest.raises(SystemExit, match="LETHE_DEVICE names cuda:99"):
        Station()
    assert [*(settings.data_dir / "scratch").iterdir()] == []
