from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.settings import Settings
from app.store import clock, session, tables
from worker.alive import alive


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[None]:
    """An empty database of our own."""
    session.configure(Settings(data_dir=tmp_path))
    tables.Base.metadata.create_all(session.engine())
    yield
    session.configure(None)


def seen(name: str, seconds_ago: float) -> None:
    with session.transaction() as db:
        db.add(tables.Worker(id=name, kind="celery", slots=1, seen_at=clock.now() - seconds_ago))


def test_a_worker_seen_just_now_is_alive(ledger: None) -> None:
    seen("host-17-abcd", 0)
    assert alive("host")


def test_a_worker_that_fell_silent_is_not(ledger: None) -> None:
    seen("host-17-abcd", 600)
    assert not alive("host")


def test_a_worker_of_another_machine_does_not_count(ledger: None) -> None:
    seen("host2-17-abcd", 0)
    assert not alive("host")
