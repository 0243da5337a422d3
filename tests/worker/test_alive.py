from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from app.settings import Settings
from app.store import clock, keys, session, tables
from app.store.ids import new
from worker.alive import alive, deaf, goes_round, went_round


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


def a_job(owner: str | None = None, rung_ago: float = 30, put_off: float = 0) -> None:
    """An old job that was rung."""
    with session.transaction() as db:
        tenant = keys.ensure_tenant(db, "t")
        job = tables.Job(
            tenant_id=tenant.id,
            id=new("job"),
            kind="ingest",
            status="running" if owner else "queued",
            lease_owner=owner,
            lease_until=clock.now() + 60 if owner else None,
            created_at=datetime.now(UTC) - timedelta(hours=1),
            dispatched_at=clock.now() - rung_ago,
            run_after=clock.now() - put_off if put_off else 0,
        )
        db.add(job)


def test_an_idle_worker_that_hears_no_bell_is_deaf(ledger: None) -> None:
    assert not deaf("host-")
    a_job()
    assert deaf("host-")
    a_job(owner="host2-17-abcd")
    assert deaf("host-")
    a_job(owner="host-17-abcd")
    assert not deaf("host-")


@pytest.mark.parametrize(("rung_ago", "put_off"), [(600, 0), (1, 0), (30, 60)])
def test_what_was_not_rung_lately_or_is_young_makes_nobody_deaf(
    ledger: None, rung_ago: float, put_off: float
) -> None:
    a_job(rung_ago=rung_ago, put_off=put_off)
    assert not deaf("host-")


def test_work_for_others_makes_nobody_deaf(ledger: None, tmp_path: Path) -> None:
    a_job()
    session.configure(Settings(data_dir=tmp_path, worker_needs=("gpu",)))
    assert not deaf("host-")


@pytest.mark.slow
def test_a_worker_that_hears_nothing_ends_itself(tmp_path: Path) -> None:
    """For whoever started it to start it anew; one that is at work stays."""
    session.configure(Settings(data_dir=tmp_path))
    session.upgrade()
    a_job()
    command = "from worker.sweep import Sweeper; Sweeper('host-17-abcd', 'celery').run()"
    folder = Path(__file__).resolve().parents[2]
    environment = {"LETHE_DATA_DIR": str(tmp_path), "LETHE_SWEEP_SECONDS": "0.1"}
    child = subprocess.Popen([sys.executable, "-c", command], cwd=folder, env=environment)
    try:
        assert child.wait(120) == 1
        a_job(owner="host-17-abcd")
        child = subprocess.Popen([sys.executable, "-c", command], cwd=folder, env=environment)
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(8)
    finally:
        child.kill()
        child.wait()
        session.configure(None)


def test_a_database_that_is_away_is_no_reason_to_start_anew(tmp_path: Path) -> None:
    settings = Settings(
        data_dir=tmp_path, database_url="postgresql://postgres@127.0.0.1:1/none", pepper="p" * 40
    )
    session.configure(settings)
    try:
        assert not goes_round()
        assert asked(settings) == 1
        went_round()
        assert goes_round()
        assert asked(settings) == 0
    finally:
        session.configure(None)


def asked(settings: Settings) -> int:
    """Exit status of the health check."""
    told = {
        "LETHE_DATA_DIR": str(settings.data_dir),
        "LETHE_DATABASE_URL": settings.database,
        "LETHE_PEPPER": "p" * 40,
        "LETHE_BROKER_URL": "redis://127.0.0.1:1/0",
    }
    asking = [sys.executable, "-m", "worker.alive"]
    return subprocess.run(asking, env={**os.environ, **told}, check=False).returncode
