"""Uploads in the ledger, on each database; and what the fourth migration gives to keys."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.store import keys, partial, tables, uploads
from app.store import session as sessions
from app.store.errors import Conflict, Gone, NotFound, TooLarge, TooMany
from app.store.session import MIGRATIONS, reading, transaction
from tests.store.conftest import World

DIGEST = "a" * 64


def make(session: Session, tenant_id: str, size: int = 10, announced: str | None = None) -> str:
    made = uploads.create(
        session, tenant_id, size_bytes=size, announced_digest=announced, upload_metadata="a"
    )
    return made.id


def test_from_created_to_used(store: World) -> None:
    with transaction() as session:
        upload_id = make(session, store.tenant)
    with transaction() as session:
        uploads.advance(session, store.tenant, upload_id, start=0, end=4, digest=None)
    with transaction() as session, pytest.raises(Conflict):
        uploads.use(session, store.tenant, upload_id, "dst_1")
    with transaction() as session:
        uploads.advance(session, store.tenant, upload_id, start=4, end=10, digest=DIGEST)
    with transaction() as session:
        uploads.use(session, store.tenant, upload_id, "dst_1")
    with transaction() as session, pytest.raises(Gone):
        uploads.use(session, store.tenant, upload_id, "dst_2")
    with reading() as session:
        found = uploads.get(session, store.tenant, upload_id)
        assert (found.status, found.used_by, found.digest) == ("verified", "dst_1", DIGEST)
        assert uploads.with_bytes(session) == set()
        with pytest.raises(NotFound):
            uploads.get(session, store.stranger, upload_id)


def test_only_one_of_two_writers_advances(store: World) -> None:
    with transaction() as session:
        upload_id = make(session, store.tenant)
        uploads.advance(session, store.tenant, upload_id, start=0, end=4, digest=None)
    with transaction() as session, pytest.raises(Conflict):
        uploads.advance(session, store.tenant, upload_id, start=0, end=6, digest=None)


def test_the_quota_is_the_tenants_own(store: World) -> None:
    most = store.settings.max_bytes_in_flight
    with transaction() as session:
        make(session, store.tenant, most - 1)
    with transaction() as session, pytest.raises(TooLarge):
        make(session, store.tenant, 2)
    with transaction() as session:
        make(session, store.stranger, 2)


def test_empty_uploads_count_too(store: World) -> None:
    sessions.configure(store.settings.model_copy(update={"max_open_uploads": 2}))
    with transaction() as session:
        first = make(session, store.tenant, 0)
        make(session, store.tenant, 0)
    with transaction() as session, pytest.raises(TooMany):
        make(session, store.tenant, 0)
    with transaction() as session:
        make(session, store.stranger, 0)
        uploads.use(session, store.tenant, first, "dst_1")
        make(session, store.tenant, 0)


def test_rows_of_ended_uploads_go(store: World) -> None:
    with transaction() as session:
        used, aborted, still_open, lately = (make(session, store.tenant, 0) for _ in range(4))
        uploads.use(session, store.tenant, used, "dst_1")
        for each in (aborted, lately):
            uploads.abort(session, store.tenant, each)
        mine = tables.Upload.id.in_([used, aborted, still_open])
        old = datetime.now(UTC) - timedelta(days=8, seconds=1)
        session.execute(update(tables.Upload).where(mine).values(touched_at=old))
    assert partial.sweep() == 0
    with reading() as session:
        assert {*session.scalars(select(tables.Upload.id))} == {still_open, lately}


def test_only_idle_uploads_expire(store: World) -> None:
    with transaction() as session:
        idle, busy, used = (make(session, store.tenant, 0) for _ in range(3))
        uploads.use(session, store.tenant, used, "dst_1")
        old = datetime.now(UTC) - timedelta(hours=25)
        mine = tables.Upload.id.in_([idle, used])
        session.execute(update(tables.Upload).where(mine).values(touched_at=old))
    with transaction() as session:
        assert uploads.expire(session) == 1
    with reading() as session:
        assert uploads.with_bytes(session) == {(store.tenant, busy)}
        assert uploads.get(session, store.tenant, idle).status == "expired"


def test_no_more_bytes_than_announced(store: World) -> None:
    with transaction() as session:
        upload_id = make(session, store.tenant)
    more = update(tables.Upload).where(tables.Upload.id == upload_id).values(received_bytes=11)
    with pytest.raises(IntegrityError), transaction() as session:
        session.execute(more)


def test_who_sent_whole_files_may_send_pieces(store: World) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with transaction() as session:
        made = {
            scope: keys.create(session, store.tenant, "k", [scope], None)[0].id
            for scope in ("models:write", "datasets:write", "models:read")
        }
    command.downgrade(config, "0007")
    command.upgrade(config, "head")
    with reading() as session:
        for scope, key_id in made.items():
            found = session.get_one(tables.ApiKey, (store.tenant, key_id)).scopes
            assert found == sorted({scope} | ({"uploads:write"} if "write" in scope else set()))
    command.check(config)
