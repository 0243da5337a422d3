"""What a job comes to when the disk is full or the database away, at every place of its way."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
from sqlalchemy import select, update
from structlog.testing import capture_logs

from app.settings import Settings
from app.store import clock, jobs
from app.store import session as sessions
from app.store.blobs import Folder, StorageAway, blobs, digest
from app.store.errors import Unavailable
from app.store.failpoints import failpoint
from app.store.jobs import Claim
from app.store.session import reading, transaction
from app.store.tables import Dataset, Job, Record
from tests.chaos.sizes import measured
from tests.trip import blobs_fail
from tests.worker.test_jobs import dataset_of, find, queue
from worker import garbage, steps
from worker.jobs import run_job
from worker.protocol import Checkpoint
from worker.station import Station


@pytest.fixture
def here(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Station]:
    monkeypatch.setattr("worker.lease.insist.__defaults__", (None, 0.01, 60.0))
    station = Station(module="tests.worker.stand_in_ingest")
    monkeypatch.setattr("worker.jobs.station", lambda: station)
    yield station
    station.close()


def fail_at(settings: Settings, what: str) -> None:
    sessions.configure(settings.model_copy(update={"failpoint": what}))


@pytest.mark.parametrize("place", ["worker.before_order", "blob.before_rename"])
def test_a_full_disk_puts_a_job_off(settings: Settings, here: Station, place: str) -> None:
    job_id = queue("ok")
    fail_at(settings, f"{place}=full")
    run_job(job_id)
    job = find(job_id)
    assert (job.status, job.attempts, job.runner_deaths) == ("queued", 0, 0)
    with transaction() as session:
        assert jobs.waiting_on(session, [job]) == {job_id: "storage_full"}
        session.execute(update(Job).values(run_after=0.0))
    run_job(job_id)
    assert (find(job_id).status, find(job_id).held_for) == ("succeeded", None)


@pytest.mark.parametrize(
    "place", ["worker.before_end_commit", "lease.before_renewal", "lease.after_renewal"]
)
def test_an_outage_is_outlasted(settings: Settings, here: Station, place: str) -> None:
    job_id = queue("ok")
    fail_at(settings, f"{place}=away")
    run_job(job_id)
    assert (find(job_id).status, find(job_id).attempts) == ("succeeded", 1)


def test_an_outage_before_the_claim_leaves_the_job_queued(
    settings: Settings, here: Station
) -> None:
    job_id = queue("ok")
    fail_at(settings, "worker.before_claim_commit=away")
    with pytest.raises(Unavailable):
        run_job(job_id)
    assert (find(job_id).status, find(job_id).attempts) == ("queued", 0)
    run_job(job_id)
    assert find(job_id).status == "succeeded"


def test_a_used_up_quota_puts_a_job_off(here: Station, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = queue("ok")
    monkeypatch.setattr(Folder, "adopt", Mock(side_effect=OSError(errno.EDQUOT, "over quota")))
    run_job(job_id)
    job = find(job_id)
    assert (job.status, job.attempts, job.held_for) == ("queued", 0, "storage_full")


def storage_away(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None], times: int = 3) -> None:
    """Have the first files of attempts not be taken, and ``act`` meanwhile."""
    monkeypatch.setattr("worker.attempt.AWAY_PAUSE_SECONDS", 0.01)
    really_adopt, failed = Folder.adopt, 0

    def adopt(store: Folder, path: Path, key: str) -> None:
        nonlocal failed
        if "/jobs/" in key and failed < times:
            failed += 1
            act()
            raise StorageAway
        really_adopt(store, path, key)

    monkeypatch.setattr(Folder, "adopt", adopt)


def test_finished_work_waits_for_its_storage(
    here: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = queue("ok")
    storage_away(monkeypatch, lambda: None)
    run_job(job_id)
    assert (find(job_id).status, find(job_id).epoch) == ("succeeded", 1)


def test_finished_work_waits_no_longer_than_its_worker(
    here: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = queue("ok")
    storage_away(monkeypatch, here.closing.set)
    run_job(job_id)
    assert (find(job_id).status, find(job_id).attempts) == ("queued", 0)


def test_finished_work_does_not_wait_for_ever(
    here: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = queue("ok")
    monkeypatch.setattr("worker.attempt.GRACE_SECONDS", -1.0)
    storage_away(monkeypatch, lambda: None)
    run_job(job_id)
    assert (find(job_id).status, find(job_id).attempts) == ("queued", 0)


def test_work_that_waits_for_its_storage_is_cancelled(
    here: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = queue("ok")

    def cancel() -> None:
        with transaction() as session:
            jobs.cancel(session, find(job_id).tenant_id, job_id)

    storage_away(monkeypatch, cancel, times=1000)
    run_job(job_id)
    assert find(job_id).status == "cancelled"


@pytest.mark.parametrize(
    "error", [StorageAway(), OSError(errno.ENOSPC, "full"), OSError(errno.EDQUOT, "over quota")]
)
def test_a_checkpoint_that_nobody_takes_is_let_go_of(
    settings: Settings, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim, event, file = a_checkpoint(settings)
    monkeypatch.setattr(Folder, "adopt", Mock(side_effect=error))
    with capture_logs() as logs:
        steps.keep(claim, event, file.parent)
    assert [log["event"] for log in logs] == ["checkpoint_not_noted"]
    assert not file.exists(), "they do not pile up"
    assert find(claim.job.id).checkpoint_blob is None


def test_a_disk_that_is_broken_ends_the_attempt(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim, event, file = a_checkpoint(settings)
    monkeypatch.setattr(Folder, "adopt", Mock(side_effect=OSError(errno.EIO, "broken")))
    with pytest.raises(OSError, match="broken"):
        steps.keep(claim, event, file.parent)


def a_checkpoint(settings: Settings) -> tuple[Claim, Checkpoint, Path]:
    with transaction() as session:
        claim = jobs.claim(session, queue("ok"), "w")
    assert claim is not None
    file = settings.data_dir / "checkpoint-1.safetensors"
    file.write_bytes(b"state")
    return claim, Checkpoint(event="checkpoint", file=file.name, digest=digest(file)), file


def test_a_failpoint_strikes_once_and_at_its_turn(settings: Settings) -> None:
    fail_at(settings, "worker.after_receive=away@2")
    failpoint("worker.after_claim")
    failpoint("worker.after_receive")
    with pytest.raises(Unavailable):
        failpoint("worker.after_receive")
    failpoint("worker.after_receive")


def test_there_is_no_other_failpoint(settings: Settings) -> None:
    fail_at(settings, "worker.nowhere=away")
    with pytest.raises(AssertionError, match=r"no failpoint worker\.nowhere"):
        failpoint("worker.after_receive")
    with pytest.raises(ValueError, match="failpoint"):
        Settings(failpoint="worker.after_claim=explode")


@pytest.mark.chaos
def test_any_failed_call_to_the_blobs_is_recovered_from(settings: Settings, here: Station) -> None:
    for nth in range(1, 40):
        job_id = queue("ok")
        with blobs_fail(nth) as trip:
            while find(job_id).status != "succeeded":
                with contextlib.suppress(OSError):
                    run_job(job_id)
                recover()
            for clear in (garbage.empty_trash, garbage.collect):
                with contextlib.suppress(OSError):
                    clear()
        garbage.empty_trash()
        garbage.collect()
        with reading() as session:
            named = {*session.scalars(select(Dataset.blob))}
            num_records = len(session.scalars(select(Record)).all())
        assert {key for key, _ in blobs().keys()} == named  # noqa: SIM118  # not a mapping
        assert num_records == 2 * nth
        assert dataset_of(job_id).status == "ready"
        assert not [path for path in here.home.path.iterdir() if path.is_dir()]
        if not trip.has_failed:
            measured(blob_calls_failed=nth - 1, ingested=nth)
            return
    raise AssertionError("the way never ends")


def recover() -> None:
    """Do as the sweeper does once a lease has run out."""
    with transaction() as session:
        running = update(Job).where(Job.status == "running")
        session.execute(running.values(lease_until=clock.now() - 1))
        jobs.sweep(session)
