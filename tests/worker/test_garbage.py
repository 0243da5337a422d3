"""Rows and bytes agree after garbage collection, in the folder and in the bucket."""

from __future__ import annotations

import pytest
from sqlalchemy import delete, update
from structlog.testing import capture_logs

from app.settings import Settings
from app.store import session as sessions
from app.store import trash
from app.store.blobs import Blobs, Folder, StorageAway, blobs
from app.store.session import reading, transaction
from app.store.tables import Base, Dataset, Job
from tests.worker.test_jobs import dataset_of, find, here, queue  # noqa: F401  # a fixture
from worker import garbage
from worker.jobs import run_job
from worker.station import Station


@pytest.fixture(params=["folder", "bucket"], autouse=True)
def store(request: pytest.FixtureRequest, settings: Settings) -> None:
    if request.param == "bucket":
        options = request.getfixturevalue("s3_settings")
        sessions.configure(Settings.model_validate(settings.model_dump() | options))


def keys() -> set[str]:
    return {key for key, _ in blobs().keys()}  # noqa: SIM118  # no dict


def age(seconds: float) -> None:
    """Let bytes count as orphans once they are so old."""
    settings = sessions.settings()
    sessions.configure(settings.model_copy(update={"orphan_seconds": seconds}))


def test_after_a_job_rows_and_bytes_agree(here: Station) -> None:  # noqa: F811
    job_id = queue("ok")
    run_job(job_id)
    garbage.empty_trash()
    assert garbage.collect() == ([], [])
    with reading() as session:
        assert keys() == trash.named(session) == {dataset_of(job_id).blob}
    assert list(here.home.path.glob("*/in")) == [], "copies are gone"


def test_bytes_without_a_row_go_once_they_are_old() -> None:
    job_id = queue("ok")
    with transaction() as session:
        session.execute(delete(Job))
        session.execute(delete(Dataset))
    assert garbage.collect() == ([], [])
    age(-5.0)
    (orphan,) = keys()
    assert garbage.collect() == ([orphan], [])
    assert keys() == set()
    assert job_id


def test_bytes_of_another_service_are_left_alone() -> None:
    """Its rows are in another database, where the bytes are in use."""
    queue("ok")
    assert garbage.collect() == ([], [])
    theirs = keys()
    with transaction() as session:
        for table in reversed(Base.metadata.sorted_tables):
            session.execute(table.delete())
    job_id = queue("ok")
    age(-5.0)
    with capture_logs() as logs:
        assert garbage.collect() == ([], [])
    assert keys() == theirs | {dataset_of(job_id).blob}
    assert [log["event"] for log in logs] == ["storage_of_another"]


def test_an_odd_file_keeps_nothing_else_from_being_collected() -> None:
    queue("ok")
    root = sessions.settings().data_dir / "blobs"
    if not root.is_dir():
        return  # a bucket makes no such names by itself
    odd = root / ".nfs000000000000000100000001"
    odd.touch()
    with transaction() as session:
        session.execute(delete(Job))
        session.execute(delete(Dataset))
    age(-5.0)
    with capture_logs() as logs:
        assert len(garbage.collect()[0]) == 1
        assert garbage.collect() == ([], [])
    assert odd.exists()
    assert [log["event"] for log in logs].count("odd_files_left") == 1


def test_a_row_without_bytes_is_told(here: Station) -> None:  # noqa: F811
    job_id = queue("ok")
    blob = dataset_of(job_id).blob
    assert blob is not None
    blobs().delete(blob)
    with capture_logs() as logs:
        assert garbage.collect() == ([], [blob])
    assert [(log["event"], log["log_level"], log["key"]) for log in logs] == [
        ("blob_missing", "error", blob)
    ]
    for _ in range(3):
        run_job(job_id)
    job = find(job_id)
    assert (job.status, job.attempts) == ("failed", 3)
    assert "not in the storage" in str(job.error)


def test_bytes_that_were_thrown_away_are_neither_orphan_nor_missing() -> None:
    job_id = queue("ok")
    blob = dataset_of(job_id).blob
    with transaction() as session:
        trash.throw(session, blob)
        session.execute(update(Dataset).values(blob=None))
    age(-5.0)
    assert garbage.collect() == ([], [])
    assert keys() == {blob}
    assert garbage.empty_trash() == 1
    assert garbage.collect() == ([], [])
    assert keys() == set()


def test_a_job_waits_for_a_storage_that_is_away(here: Station) -> None:  # noqa: F811
    job_id = queue("ok")
    away = {"blobs_url": "s3://nowhere", "blobs_endpoint": "http://127.0.0.1:9"}
    settings = sessions.settings().model_dump() | away
    sessions.configure(Settings.model_validate(settings))
    run_job(job_id)
    job = find(job_id)
    assert (job.status, job.attempts, job.runner_deaths) == ("queued", 0, 0)


def thrown(*keys: str) -> None:
    """Store something under each key, and throw it away in this order."""
    for key in keys:
        folder = blobs().scratch()
        (folder / "f").write_text("x")
        blobs().adopt(folder / "f", key)
        with transaction() as session:
            trash.throw(session, key)


def keep(monkeypatch: pytest.MonkeyPatch, kept: str, error: Exception) -> None:
    """Have the storage refuse to remove the bytes of one key."""
    really_delete = type(blobs()).delete

    def delete(store: Blobs, key: str) -> None:
        if key == kept:
            raise error
        really_delete(store, key)

    monkeypatch.setattr(type(blobs()), "delete", delete)


@pytest.mark.parametrize("error", [PermissionError(), StorageAway(), ValueError()])
def test_bytes_that_cannot_be_removed_keep_no_others(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    thrown("t/1", "t/2", "t/3")
    keep(monkeypatch, "t/2", error)
    monkeypatch.setattr(garbage, "BATCH", 1)
    with capture_logs() as logs:
        assert garbage.empty_trash() == 2
    kept = [(log["log_level"], log["key"]) for log in logs if log["event"] == "trash_kept"]
    assert kept == [("error", "t/2")]
    with reading() as session:
        assert trash.pending(session) == ["t/2"]
    assert keys() == {"t/2"}


def test_a_folder_in_the_place_of_a_file_keeps_nothing_else() -> None:
    if isinstance(blobs(), Folder):
        (sessions.settings().data_dir / "blobs" / "a").mkdir()
        with transaction() as session:
            trash.throw(session, "a")
    thrown("b")
    assert garbage.empty_trash() == 1
    assert keys() == set()


def test_an_orphan_that_cannot_be_removed_keeps_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    queue("ok")
    thrown("a", "b")
    with transaction() as session:
        trash.removed(session, ["a", "b"])
    age(-5.0)
    keep(monkeypatch, "a", PermissionError())
    assert garbage.collect() == (["b"], [])


def test_a_storage_that_is_away_ends_the_pass_and_what_is_gone_is_struck_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    thrown("t/1", "t/2", "t/3")
    asked: list[str] = []

    def delete(_: Blobs, key: str) -> None:
        asked.append(key)
        if key != "t/1":
            raise StorageAway

    def check(_: Blobs) -> None:
        raise StorageAway

    monkeypatch.setattr(type(blobs()), "delete", delete)
    monkeypatch.setattr(type(blobs()), "check", check)
    with pytest.raises(StorageAway):
        garbage.empty_trash()
    assert asked == ["t/1", "t/2"]
    with reading() as session:
        assert trash.pending(session) == ["t/2", "t/3"]
