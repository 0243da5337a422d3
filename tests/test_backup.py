"""The restore drill: what was deleted after a backup does not come back with it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import obstore
import pytest
from sqlalchemy import func, select, text, update

from app import backup
from app.settings import Settings
from app.store import datasets, jobs, keyed, keys, models, requests, tables, trash
from app.store import session as sessions
from app.store.blobs import blobs
from app.store.session import reading, transaction
from tests import factories
from worker import garbage

PEPPER = "p" * 40


@pytest.fixture(
    params=["sqlite and folder", pytest.param("postgres and bucket", marks=pytest.mark.postgres)]
)
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Settings]:
    options: dict[str, object] = {"data_dir": tmp_path / "data", "pepper": PEPPER}
    if request.param != "sqlite and folder":
        options |= request.getfixturevalue("s3_settings")
        options["database_url"] = request.getfixturevalue("postgres_url")
        if shutil.which("pg_dump") is None:
            pytest.skip("pg_dump is not installed")
    chosen = Settings.model_validate(options)
    sessions.configure(chosen)
    sessions.upgrade()
    empty()
    yield chosen
    sessions.configure(None)


def empty() -> None:
    """Remove what others who share the database have left."""
    with transaction() as session:
        for table in reversed(tables.Base.metadata.sorted_tables):
            session.execute(table.delete())


@pytest.fixture
def small(tmp_path: Path, migrated: Path) -> Iterator[Path]:
    """A service with one dataset; its backup."""
    (tmp_path / "data").mkdir()
    shutil.copy(migrated, tmp_path / "data" / "lethe.db")
    sessions.configure(Settings(data_dir=tmp_path / "data", database_url="", pepper=PEPPER))
    with transaction() as session:
        factories.a_dataset(session, factories.a_tenant(session))
    write_bytes()
    assert backup.main(["create", str(tmp_path / "backup")]) == 0
    yield tmp_path / "backup"
    sessions.configure(None)


def write_bytes() -> None:
    """Give every row its bytes: its own key."""
    with reading() as session:
        named = trash.named(session)
    for key in named:
        if not blobs().exists(key):
            scratch = blobs().scratch()
            (scratch / "b").write_text(key)
            blobs().adopt(scratch / "b", key)


def lose_everything(settings: Settings) -> None:
    """Lose the database, and the blobs, too."""
    for key, _ in list(blobs().keys()):
        blobs().delete(key)
    if settings.database_url:
        with sessions.engine().begin() as connection:
            connection.execute(text("drop schema public cascade"))
            connection.execute(text("create schema public"))
    sessions.configure(settings)
    for file in settings.data_dir.glob("lethe.db*"):
        file.unlink()


def test_the_drill(settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with transaction() as session:
        tenant = factories.a_tenant(session, "acme")
        kept = factories.a_model(session, tenant)
        doomed = factories.a_model(session, tenant)
        early = factories.a_request(session, tenant, kept.id, record_ids=["r1"])
        key, _ = keys.create(session, tenant, "k", ["models:read"], None)
    write_bytes()
    folder, stones = tmp_path / "backup", tmp_path / "tombstones.jsonl"
    assert backup.main(["create", str(folder)]) == 0
    assert backup.main(["verify", str(folder)]) == 0

    with transaction() as session:
        keys.revoke(session, tenant, key.id, force=True)
        requests.cancel(session, tenant, early.id)
        late = factories.a_request(session, tenant, kept.id, record_ids=["r0"], policy="exact")
        models.delete(session, tenant, doomed.id)
        datasets.delete(session, tenant, str(doomed.dataset_id))
        unknown = factories.a_model(session, tenant)
        models.delete(session, tenant, unknown.id)
    assert backup.main(["tombstones", str(stones)]) == 0
    assert "r0" not in stones.read_text()

    lose_everything(settings)
    command = ["restore", str(folder), "--tombstones", str(stones)]
    assert backup.main(command) == 0
    assert "5 deletions replayed" in capsys.readouterr().out
    with reading() as session:
        assert session.get_one(tables.Model, (tenant, doomed.id)).status == "deleted"
        assert session.get_one(tables.Dataset, (tenant, doomed.dataset_id)).status == "deleted"
        assert session.get_one(tables.Request, (tenant, early.id)).status == "cancelled"
        assert session.get_one(tables.ApiKey, (tenant, key.id)).revoked_at is not None
        assert session.get(tables.Model, (tenant, unknown.id)) is None
        again = session.get_one(tables.Request, (tenant, late.id))
        assert (again.status, again.rows.tolist(), again.policy) == ("queued", [0], "exact")
        assert (again.received_at, again.due_at) == (late.received_at, late.due_at)
        assert session.get_one(tables.Job, (tenant, again.job_id)).status == "queued"
        named = trash.named(session)
    assert backup.main(["pending"]) == 1
    garbage.empty_trash()
    assert garbage.collect() == ([], [])
    for name in named:
        assert blobs().fetch(name, blobs().scratch()).read_text() == name
    assert len({name for name, _ in blobs().keys()}) == len(named)  # noqa: SIM118  # no dict

    assert backup.main(command) == 1, "never over something"
    stones_again = [*map(json.loads, stones.read_text().splitlines())]
    assert {stone["kind"] for stone in stones_again} == {
        "key",
        "cancelled_request",
        "request",
        "model",
        "dataset",
    }


def test_what_was_done_at_the_second_try_is_tried_again(small: Path, tmp_path: Path) -> None:
    with transaction() as session:
        tenant = factories.a_tenant(session, "other")
        model = factories.a_model(session, tenant)
        request = factories.a_request(session, tenant, model.id)
        hopeless = factories.a_request(session, tenant, model.id, record_ids=["r1"], policy="exact")
        for each in (request, hopeless):
            claim = jobs.claim(session, each.job_id, "w")
            assert claim is not None
            jobs.fail(session, claim, "bad", "-", retryable=False)
        old, _ = keys.create(session, tenant, "k", ["models:read"], None)
    write_bytes()
    folder, stones = tmp_path / "second", tmp_path / "stones"
    assert backup.main(["create", str(folder)]) == 0
    with transaction() as session:
        claim = jobs.claim(session, jobs.retry(session, tenant, request.job_id).id, "w")
        assert claim is not None
        factories.publish(session, claim)
        soon = datetime.now(UTC) + timedelta(days=9)
        keys.rotate(session, tenant, old.id, expires_at=soon, overlap=timedelta(hours=1))
        ends_at = session.get_one(tables.ApiKey, (tenant, old.id)).expires_at
    assert backup.main(["tombstones", str(stones)]) == 0
    sessions.configure(Settings(data_dir=tmp_path / "new", database_url="", pepper=PEPPER))
    assert backup.main(["restore", str(folder), "--tombstones", str(stones)]) == 0
    with reading() as session:
        again = requests.get(session, tenant, request.id)
        assert (again.status, again.problem) == ("queued", None)
        assert jobs.get(session, tenant, again.job_id).retry_of_id == request.job_id
        assert requests.get(session, tenant, hopeless.id).status == "needs_attention"
        assert session.get_one(tables.ApiKey, (tenant, old.id)).expires_at == ends_at is not None


@pytest.mark.parametrize(("pepper", "told"), [("q" * 40, "is not the one"), (None, "is missing")])
def test_nothing_is_restored_under_another_pepper(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], pepper: str, told: str
) -> None:
    assert keyed.pepper_fault() is None
    assert backup.main(["create", str(tmp_path / "second")]) == 0
    other = Settings(data_dir=tmp_path / "other", database_url="", pepper=pepper)
    sessions.configure(other)
    assert backup.main(["restore", str(tmp_path / "second"), "--tombstones", "none"]) == 1
    assert told in capsys.readouterr().err
    assert not (other.data_dir / "lethe.db").exists()
    assert not (other.data_dir / "pepper").exists()


def test_a_damaged_backup_is_refused(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (blob,) = [path for path in (small / "blobs").rglob("*") if path.is_file()]
    blob.write_text("else")
    assert backup.main(["verify", str(small)]) == 1
    assert "damaged: blobs/" in capsys.readouterr().err
    (small / "manifest.json").unlink()
    assert backup.main(["verify", str(small)]) == 1
    assert "no backup" in capsys.readouterr().err


def test_a_restore_that_fails_leaves_no_database(small: Path, tmp_path: Path) -> None:
    other = Settings(data_dir=tmp_path / "other", database_url="", pepper=PEPPER)
    sessions.configure(other)
    stones = tmp_path / "stones"
    stones.write_text('{"kind": "else"}\n')
    assert backup.main(["restore", str(small), "--tombstones", str(stones)]) == 1
    assert backup.main(["restore", str(small), "--tombstones", str(tmp_path / "absent")]) == 1
    assert not (other.data_dir / "lethe.db").exists()
    assert backup.main(["restore", str(small), "--tombstones", "none"]) == 0
    assert (other.data_dir / "lethe.db").exists()


@pytest.mark.parametrize("end", ["", "-wal", "-shm", "-journal"])
def test_a_restore_goes_only_where_nothing_of_a_database_is_left(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], end: str
) -> None:
    other = Settings(data_dir=tmp_path / "other", database_url="", pepper=PEPPER)
    sessions.configure(other)
    other.data_dir.mkdir()
    left = other.data_dir / f"lethe.db{end}"
    left.write_bytes(b"journal of another database")
    assert backup.main(["restore", str(small), "--tombstones", "none"]) == 1
    assert f"{left} is there" in capsys.readouterr().err
    left.unlink()
    (other.data_dir / f"lethe.db.restoring{end}").write_bytes(b"of a restore that was killed")
    assert backup.main(["restore", str(small), "--tombstones", "none"]) == 0
    with reading() as session:
        assert session.scalar(select(func.count()).select_from(tables.Dataset)) == 1
    assert not list(other.data_dir.glob("*.restoring*"))


def test_what_cannot_be_replayed_is_told(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with transaction() as session:
        tenant = factories.a_tenant(session, "other")
        model = factories.a_model(session, tenant)
    write_bytes()
    folder = tmp_path / "second"
    assert backup.main(["create", str(folder)]) == 0
    with transaction() as session:
        request = factories.a_request(session, tenant, model.id)
    stones = tmp_path / "stones"
    assert backup.main(["tombstones", str(stones)]) == 0
    stones.write_text(stones.read_text().replace('"record_ids"', '"samples"'))
    sessions.configure(Settings(data_dir=tmp_path / "new", database_url="", pepper=PEPPER))
    assert backup.main(["restore", str(folder), "--tombstones", str(stones)]) == 1
    assert f"not replayed: request {request.id}: samples_erased" in capsys.readouterr().err


def test_what_the_dump_names_is_in_the_backup(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job ends while the backup is made, and the bytes that the dump still names go."""
    ((key, _),) = blobs().keys()
    dump = backup._dump

    def and_then(folder: Path) -> Path:
        made = dump(folder)
        with transaction() as session:
            trash.throw(session, key)
            session.execute(update(tables.Dataset).values(blob=None))
        garbage.empty_trash()
        return made

    monkeypatch.setattr(backup, "_dump", and_then)
    folder = small.with_name("next")
    assert backup.main(["create", str(folder)]) == 0
    assert (folder / "blobs" / key).read_text() == key


@pytest.mark.postgres
@pytest.mark.parametrize("settings", ["postgres and bucket"], indirect=True)
def test_a_restore_that_fails_says_what_it_leaves(
    settings: Settings,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with transaction() as session:
        factories.a_dataset(session, factories.a_tenant(session))
    write_bytes()
    folder = tmp_path / "backup"
    assert backup.main(["create", str(folder)]) == 0
    lose_everything(settings)
    command = ["restore", str(folder), "--tombstones", "none"]

    def away(*_: object) -> None:
        raise OSError("away")

    with monkeypatch.context() as patch:
        patch.setattr(backup, "_copy_in", away)
        assert backup.main(command) == 1
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(backup, "upgrade", away)
        assert backup.main(command) == 1, "blobs came first: the database was empty still"
    assert "Drop it" in capsys.readouterr().err


def test_a_damaged_blob_is_told_and_not_laundered(
    tmp_path: Path,
    migrated: Path,
    s3_settings: dict[str, object],
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "data").mkdir()
    shutil.copy(migrated, tmp_path / "data" / "lethe.db")
    given = {"data_dir": tmp_path / "data", "database_url": "", "pepper": PEPPER}
    sessions.configure(Settings.model_validate(given | s3_settings))
    try:
        with transaction() as session:
            factories.a_dataset(session, factories.a_tenant(session))
        write_bytes()
        ((key, _),) = blobs().keys()
        bucket: Any = blobs()
        kept = {"sha256": bucket.open(key).digest}
        obstore.put(bucket._store, key, b"other bytes", attributes=kept)
        assert backup.main(["create", str(tmp_path / "backup")]) == 1
        assert f"damaged there: {key}" in capsys.readouterr().err
        copied = (tmp_path / "backup" / "blobs").rglob("*")
        assert not [file for file in copied if file.is_file()]
    finally:
        sessions.configure(None)


def test_a_damaged_file_of_a_folder_is_told_and_not_laundered(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = f"ten_1/uploads/{hashlib.sha256(b'whole').hexdigest()}-1"
    with transaction() as session:
        session.execute(update(tables.Dataset).values(blob=key))
    write_bytes()  # its key, which is something else
    folder = small.with_name("next")
    assert backup.main(["create", str(folder)]) == 1
    assert f"damaged there: {key}" in capsys.readouterr().err
    assert not [file for file in (folder / "blobs").rglob("*") if file.is_file()]


def test_a_missing_blob_is_told(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ((key, _),) = blobs().keys()
    blobs().delete(key)
    assert backup.main(["create", str(small.with_name("next"))]) == 1
    assert key in capsys.readouterr().err
    manifest = json.loads((small.with_name("next") / "manifest.json").read_text())
    assert manifest["missing"] == [key]
