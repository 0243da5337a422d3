"""What the sweeper and the cleaner do beside the jobs' own, and what keeps them from it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from sqlalchemy import select, update
from sqlalchemy.exc import OperationalError

from app.settings import Settings
from app.store import clock, jobs, trash, workers
from app.store import session as sessions
from app.store.blobs import Folder, blobs
from app.store.erasing import erase
from app.store.session import reading, transaction
from app.store.tables import Job, Record
from tests import factories
from tests.store.test_homes import leave
from tests.trip import database_fails
from tests.worker.test_jobs import dataset_of, find, queue
from tests.worker.test_lease import eventually
from worker.alive import goes_round
from worker.sweep import Cleaner, Sweeper


@pytest.fixture
def mute(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A storage that never answers who removes something; set once it is asked."""
    answers, held = threading.Event(), threading.Event()

    def delete(*_: object) -> None:
        held.set()
        answers.wait()

    monkeypatch.setattr(Folder, "delete", delete)
    monkeypatch.setattr("worker.sweep.STOP_SECONDS", 0.1)
    yield held
    answers.set()
    for thread in threading.enumerate():
        if isinstance(thread, Cleaner):
            thread.join(10)


@pytest.mark.parametrize("failing", [(), ("empty_trash", "collect")])
def test_what_a_killed_service_had_in_scratch_is_removed(
    settings: Settings, failing: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in failing:
        monkeypatch.setattr(f"worker.garbage.{name}", Mock(side_effect=OSError))
    left = leave(blobs())
    (left / "upload").write_bytes(b"somebody's records")
    Cleaner(threading.Event())._clean()
    assert not left.exists()


def test_the_index_of_a_dataset_that_is_gone_is_removed(settings: Settings) -> None:
    with transaction() as session:
        tenant = factories.a_tenant(session)
        dataset = factories.a_dataset(session, tenant, factories.index())
        erase(session, dataset)
    Cleaner(threading.Event())._clean()
    with reading() as session:
        assert session.scalars(select(Record)).all() == []


def test_a_sweeper_tells_what_its_worker_sees(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweeper = Sweeper("w", "embedded", "L1", 7)
    sweeper._sweep()
    with reading() as session:
        (worker,) = workers.live(session)
    assert worker.missing_blobs is None, "it has not searched yet"
    blob = dataset_of(queue("ok")).blob
    assert blob is not None
    blobs().delete(blob)
    sweeper._cleaner._clean()
    usage = Mock(free=1, total=4)
    monkeypatch.setattr("worker.sweep.shutil.disk_usage", lambda folder: folder.stat() and usage)
    sweeper._sweep()
    with reading() as session:
        (worker,) = workers.live(session)
    assert (worker.sandbox, worker.memory_bytes) == ("L1", 7)
    assert (worker.scratch_free_share, worker.missing_blobs) == (0.25, 1)
    monkeypatch.setattr("worker.sweep.shutil.disk_usage", Mock(side_effect=OSError))
    sweeper._sweep()
    with reading() as session:
        (worker,) = workers.live(session)
    assert worker.scratch_free_share is None


def test_a_deaf_worker_ends_although_it_cannot_sweep(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweeper = Sweeper("w", "celery")
    exits = Mock(side_effect=lambda _: sweeper._closing.set())
    monkeypatch.setattr("worker.sweep.os._exit", exits)
    monkeypatch.setattr("worker.sweep.deaf", lambda _: True)
    monkeypatch.setattr("worker.sweep.jobs.sweep", Mock(side_effect=ZeroDivisionError))
    sweeper.start()
    assert eventually(lambda: exits.call_count == 1)
    sweeper.stop()


def test_a_sweeper_goes_its_rounds_although_the_database_is_away(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.sweep.jobs.sweep", database_fails)
    assert not goes_round()
    sweeper = Sweeper("w", "embedded")
    sweeper.start()
    assert eventually(goes_round)
    sweeper.stop()


def live() -> list[str]:
    with reading() as session:
        return [worker.id for worker in workers.live(session)]


def test_leases_are_recovered_while_the_storage_is_mute(
    settings: Settings, mute: threading.Event
) -> None:
    sessions.configure(settings.model_copy(update={"sweep_seconds": 0.05, "lease_seconds": 0.5}))
    with transaction() as session:
        trash.throw(session, "t/1")
    sweeper = Sweeper("w", "embedded")
    sweeper.start()
    assert mute.wait(10)
    job_id = queue("ok")
    with transaction() as session:
        assert jobs.claim(session, job_id, "gone") is not None
        workers.leave(session, "w")
    assert eventually(lambda: find(job_id).lost_leases == 1)
    assert eventually(lambda: live() == ["w"])
    sweeper.stop()


def test_after_an_outage_the_holders_of_leases_come_first(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("worker.sweep.time", SimpleNamespace(monotonic=lambda: now))
    sessions.configure(settings.model_copy(update={"heartbeat_seconds": 10.0}))
    job_id, sweeper = queue("ok"), Sweeper("w", "embedded")
    with transaction() as session:
        assert jobs.claim(session, job_id, "v") is not None
        session.execute(update(Job).values(lease_until=clock.now() - 1))
    with database_fails(1), pytest.raises(OperationalError):
        sweeper._sweep()
    now += 60.0
    sweeper._sweep()
    with reading() as session:
        assert [worker.id for worker in workers.live(session)] == ["w"]
    now += 19.0
    sweeper._sweep()
    assert find(job_id).lost_leases == 0
    now += 2.0
    sweeper._sweep()
    assert find(job_id).lost_leases == 1


def test_a_worker_ends_while_the_storage_is_mute(settings: Settings, mute: threading.Event) -> None:
    with transaction() as session:
        trash.throw(session, "t/1")
    sweeper = Sweeper("w", "embedded")
    sweeper.start()
    assert mute.wait(10)
    stopping = threading.Thread(target=sweeper.stop, daemon=True)
    stopping.start()
    stopping.join(10)
    assert not stopping.is_alive()
    with reading() as session:
        assert workers.live(session) == []


def test_an_ending_worker_removes_nothing_more(settings: Settings) -> None:
    closing = threading.Event()
    closing.set()
    with transaction() as session:
        trash.throw(session, "t/1")
    Cleaner(closing)._clean()
    with reading() as session:
        assert trash.pending(session) == ["t/1"]
