"""The task, on a real ledger, with a runner that does what it is told."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import pytest
from celery.exceptions import WorkerShutdown
from celery.worker import state
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.settings import Settings
from app.store import datasets, jobs, keys
from app.store import session as sessions
from app.store.blobs import blobs
from app.store.session import reading, transaction
from app.store.tables import Dataset, Job, Record
from worker import garbage, steps
from worker.jobs import run_job
from worker.station import Station
from worker.supervisor import Runner


@pytest.fixture
def here(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Station]:
    station = Station(module="tests.worker.stand_in_ingest")
    monkeypatch.setattr("worker.jobs.station", lambda: station)
    yield station
    station.close()


def queue(what: str) -> str:
    """Upload a file that tells the runner what to do; return the job's id."""
    with transaction() as session:
        tenant = keys.ensure_tenant(session, "t")
        key = f"{tenant.id}/uploads/{what}"
        store(key, what)
        _, job = datasets.create(
            session,
            tenant.id,
            name="d",
            purpose=None,
            class_names=None,
            digest="0" * 64,
            size_bytes=1,
            blob=key,
            meta={},
        )
    return job.id


def store(key: str, content: str) -> None:
    folder = blobs().scratch()
    (folder / "upload").write_text(content)
    blobs().adopt(folder / "upload", key)
    folder.rmdir()


def find(job_id: str) -> Job:
    with reading() as session:
        return session.scalars(select(Job).where(Job.id == job_id)).one()


def dataset_of(job_id: str) -> Dataset:
    with reading() as session:
        job = session.scalars(select(Job).where(Job.id == job_id)).one()
        return session.get_one(Dataset, (job.tenant_id, job.dataset_id))


def while_running(job_id: str, act: Callable[[], None]) -> threading.Thread:
    """Call ``act`` once the job has told of its progress."""

    def wait() -> None:
        while find(job_id).progress != 0.5:
            time.sleep(0.02)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def scratch_is_empty(settings: Settings, here: Station) -> bool:
    runners = [path for path in here.home.path.iterdir() if path.is_dir()]
    return not runners and [*(settings.data_dir / "scratch").iterdir()] == [here.home.path]


def test_a_job_is_done_and_its_files_adopted(settings: Settings, here: Station) -> None:
    job_id = queue("ok")
    run_job(job_id)
    job, dataset = find(job_id), dataset_of(job_id)
    assert (job.status, job.attempts, job.epoch) == ("succeeded", 1, 1)
    assert (dataset.status, dataset.num_train, dataset.num_holdout) == ("ready", 1, 1)
    sha256 = hashlib.sha256(b"canonical").hexdigest()
    assert dataset.blob == f"{job.tenant_id}/jobs/{job_id}/e1/{sha256}-records.parquet"
    assert blobs().path(dataset.blob).read_bytes() == b"canonical"
    with reading() as session:
        records = session.scalars(select(Record).order_by(Record.row)).all()
    assert [record.record_id for record in records] == ["a", "b"]
    assert records[0].subject_hash not in (None, "someone")
    assert records[1].subject_hash is None
    assert scratch_is_empty(settings, here)


def test_records_are_indexed_in_transactions_of_their_own(
    here: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    committed: list[int] = []

    def add(session: Session, claim: jobs.Claim, start: int, index: Sequence[Any]) -> bool:
        with reading() as other:
            committed.append(len(other.scalars(select(Record)).all()))
        return add_to_index(session, claim, start, index)

    add_to_index = jobs.add_to_index
    monkeypatch.setattr(jobs, "CHUNK", 1)
    monkeypatch.setattr(jobs, "add_to_index", add)
    job_id = queue("ok")
    dead = {"tenant_id": find(job_id).tenant_id, "dataset_id": dataset_of(job_id).id}
    with transaction() as session:
        for row in range(3):
            left = Record(row=row, record_id=f"left-{row}", label=0, split="train", **dead)
            session.add(left)
    run_job(job_id)
    assert (find(job_id).status, committed) == ("succeeded", [0, 1])
    with reading() as session:
        rows = session.execute(select(Record.row, Record.record_id).order_by(Record.row)).all()
    assert [tuple(row) for row in rows] == [(0, "a"), (1, "b")]


def test_a_job_cancelled_while_its_records_are_indexed_leaves_none(
    here: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    def add(session: Session, claim: jobs.Claim, start: int, index: Sequence[Any]) -> bool:
        if start:
            jobs.cancel(session, claim.job.tenant_id, claim.job.id)
        return add_to_index(session, claim, start, index)

    add_to_index = jobs.add_to_index
    monkeypatch.setattr(jobs, "CHUNK", 1)
    monkeypatch.setattr(jobs, "add_to_index", add)
    job_id = queue("ok")
    run_job(job_id)
    assert (find(job_id).status, dataset_of(job_id).status) == ("cancelled", "rejected")
    garbage.drop_indexes()
    with reading() as session:
        assert session.scalars(select(Record)).all() == []
    garbage.empty_trash()
    assert list(blobs().keys()) == []


def test_a_second_bell_finds_nothing_to_claim(here: Station) -> None:
    job_id = queue("ok")
    run_job(job_id)
    run_job(job_id)
    assert find(job_id).attempts == 1


def test_a_bell_for_nothing_is_ignored(here: Station) -> None:
    run_job("job_nobody")


def test_a_refusal_ends_the_job_with_its_code(settings: Settings, here: Station) -> None:
    job_id = queue("refuse")
    run_job(job_id)
    assert find(job_id).status == "failed"
    assert dataset_of(job_id).rejection == {
        "code": "dataset_empty",
        "detail": "the dataset holds no records",
    }
    assert scratch_is_empty(settings, here)


@pytest.mark.parametrize(
    "what", ["crash", "stop", "link", "hardlink", "nothing", "nonsense", "short"]
)
def test_a_bad_runner_is_tried_again_and_then_given_up(
    what: str, settings: Settings, here: Station
) -> None:
    job_id = queue(what)
    run_job(job_id)
    assert (find(job_id).status, find(job_id).runner_deaths) == ("queued", 1)
    run_job(job_id)
    run_job(job_id)
    job = find(job_id)
    assert job.status == "failed"
    assert job.error is not None
    assert job.error["code"] == "runner_died"
    assert "someone" not in str(job.error)
    garbage.empty_trash()
    garbage.collect()
    kept = dataset_of(job_id)
    assert (kept.status, kept.rejection) == ("validating", job.error)
    assert list(blobs().keys()) == [(kept.blob, mock.ANY)], "the upload is not to blame"
    assert scratch_is_empty(settings, here)
    with transaction() as session:
        datasets.delete(session, job.tenant_id, kept.id)
    garbage.drop_indexes()
    garbage.empty_trash()
    with reading() as session:
        assert session.scalars(select(Record)).all() == []
    assert list(blobs().keys()) == []


def test_a_job_whose_bytes_are_missing_is_tried_again_and_then_says_so(here: Station) -> None:
    job_id = queue("ok")
    upload = dataset_of(job_id).blob
    assert upload is not None
    blobs().delete(upload)
    run_job(job_id)
    assert find(job_id).status == "queued", "they may be back soon"
    run_job(job_id)
    run_job(job_id)
    job = find(job_id)
    assert job.status == "failed"
    assert job.error is not None
    assert job.error["code"] == "blob_missing"
    assert upload not in job.error["detail"]
    assert dataset_of(job_id).rejection == job.error
    store(upload, "ok")
    with transaction() as session:
        again = jobs.retry(session, job.tenant_id, job_id)
    run_job(again.id)
    assert (find(again.id).status, dataset_of(job_id).status) == ("succeeded", "ready")


def test_a_worker_whose_accelerator_is_gone_gives_its_job_back_and_ends(
    settings: Settings, here: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "should_stop", None)
    sessions.configure(settings.model_copy(update={"device": "cuda:99"}))
    job_id, other_id = queue("deviceless"), queue("ok")
    run_job(job_id)
    job = find(job_id)
    assert (job.status, job.attempts, job.runner_deaths) == ("queued", 0, 0)
    assert dataset_of(job_id).status == "validating"
    with pytest.raises(WorkerShutdown) as ended:
        state.maybe_shutdown()
    assert ended.value.code == 1
    run_job(other_id)
    assert find(other_id).status == "queued", "it takes nothing any more"


def test_an_accelerator_that_answers_leaves_the_blame_with_the_runner(here: Station) -> None:
    job_id = queue("deviceless")
    run_job(job_id)
    assert (find(job_id).status, find(job_id).runner_deaths) == ("queued", 1)
    assert not here.is_broken


def test_a_stalled_runner_counts_as_a_death(settings: Settings, here: Station) -> None:
    sessions.configure(settings.model_copy(update={"stall_seconds": 5.0}))
    job_id = queue("hang")
    run_job(job_id)
    assert (find(job_id).status, find(job_id).runner_deaths) == ("queued", 1)


def test_a_running_job_is_cancelled(settings: Settings, here: Station) -> None:
    job_id = queue("hang")

    def cancel() -> None:
        with transaction() as session:
            jobs.cancel(session, find(job_id).tenant_id, job_id)

    canceller = while_running(job_id, cancel)
    run_job(job_id)
    canceller.join()
    assert find(job_id).status == "cancelled"
    assert scratch_is_empty(settings, here)


def test_a_closing_worker_gives_the_job_back_with_its_attempt(
    here: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.attempt.accompany.__kwdefaults__", {"drain_seconds": 0.1})
    job_id = queue("hang")
    closer = while_running(job_id, here.closing.set)
    run_job(job_id)
    closer.join()
    job = find(job_id)
    assert (job.status, job.attempts, job.runner_deaths) == ("queued", 0, 0)
    run_job(job_id)
    assert find(job_id).status == "queued", "a closing worker takes nothing new"


def test_who_lost_the_lease_writes_nothing(settings: Settings, here: Station) -> None:
    job_id = queue("hang")

    def steal() -> None:
        with transaction() as session:
            jobs.free_all(session)
        with transaction() as session:
            assert jobs.claim(session, job_id, "thief") is not None

    thief = while_running(job_id, steal)
    run_job(job_id)
    thief.join()
    job = find(job_id)
    assert (job.status, job.epoch, job.lease_owner) == ("running", 2, "thief")
    assert scratch_is_empty(settings, here)


def test_a_late_result_is_refused(here: Station, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lease goes to another between the runner's last word and the transaction."""
    job_id = queue("ok")
    seal = __import__("worker.steps").steps.seal

    def seal_late(*arguments: object) -> object:
        ending = seal(*arguments)
        with transaction() as session:
            jobs.free_all(session)
        with transaction() as session:
            assert jobs.claim(session, job_id, "thief") is not None
        return ending

    monkeypatch.setattr("worker.steps.seal", seal_late)
    run_job(job_id)
    assert (find(job_id).status, find(job_id).lease_owner) == ("running", "thief")
    assert dataset_of(job_id).status == "validating"
    (orphan,) = (key for key, _ in blobs().keys() if f"/jobs/{job_id}/e1/" in key)  # noqa: SIM118
    garbage.collect()
    assert not blobs().exists(orphan)


def test_a_runner_is_gone_before_its_files_are_checked(
    here: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it started could change them once they are checked."""
    taken: list[Runner] = []
    left: list[int] = []
    take, seal = here.bench.take, steps.seal

    def take_noted() -> Runner:
        taken.append(take())
        return taken[-1]

    def seal_noted(*arguments: Any) -> Any:
        left.append(taken[-1].memory)
        return seal(*arguments)

    monkeypatch.setattr(here.bench, "take", take_noted)
    monkeypatch.setattr("worker.steps.seal", seal_noted)
    job_id = queue("linger")
    run_job(job_id)
    assert (find(job_id).status, left) == ("succeeded", [0])


def test_orphans_are_spared_while_their_attempt_runs(settings: Settings) -> None:
    job_id = queue("ok")
    with transaction() as session:
        claim = jobs.claim(session, job_id, "w")
    assert claim is not None
    folder = blobs().scratch()
    for epoch in (0, 1):
        (folder / "f").write_text("x")
        blobs().adopt(folder / "f", f"{claim.job.tenant_id}/jobs/{job_id}/e{epoch}/f")
    garbage.collect()
    left = {key for key, _ in blobs().keys()}  # noqa: SIM118  # not a mapping
    assert f"{claim.job.tenant_id}/jobs/{job_id}/e1/f" in left
    assert f"{claim.job.tenant_id}/jobs/{job_id}/e0/f" not in left
    assert any("/uploads/" in key for key in left), "a fresh upload is about to be named"
