"""A worker that lacks something does not start: Celery would hide the error and go on."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from app.settings import Settings
from app.store import session
from worker import capacity, main


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
