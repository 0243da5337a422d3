"""Remembered answers."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select, update

from app.store import idempotency, jobs, tables
from app.store.errors import Conflict, Unacceptable
from app.store.keys import Caller
from app.store.session import reading, transaction
from tests.store.conftest import World

CALL = ("POST", "/unlearn-requests", "k1")


def caller_of(store: World) -> Caller:
    return Caller(store.tenant, "key_1", frozenset(), "key_1")


def remember(caller: Caller, call: tuple[str, str, str] = CALL, fingerprint: str = "f") -> None:
    with transaction() as session:
        idempotency.remember(
            session, caller, *call, fingerprint, status_code=202, headers={"L": "/x"}, body={"a": 1}
        )


def remembered(
    caller: Caller, call: tuple[str, str, str] = CALL, fingerprint: str = "f"
) -> tables.IdempotencyKey | None:
    with transaction() as session:
        return idempotency.remembered(session, caller, *call, fingerprint)


def test_the_same_call_gets_the_same_answer(store: World) -> None:
    caller = caller_of(store)
    assert remembered(caller) is None
    remember(caller)
    stored = remembered(caller)
    assert stored is not None
    assert (stored.status_code, stored.headers, stored.body) == (202, {"L": "/x"}, {"a": 1})


def test_a_key_cannot_be_read_back(store: World) -> None:
    caller = caller_of(store)
    remember(caller)
    remember(replace(caller, tenant_id=store.stranger))
    with reading() as session:
        kept = session.scalars(select(tables.IdempotencyKey.key)).all()
    assert len({*kept}) == 2, "an equal key of another tenant looks like another"
    assert {*kept}.isdisjoint({CALL[2], hashlib.sha256(CALL[2].encode()).hexdigest()})


def test_another_body_is_refused(store: World) -> None:
    remember(caller_of(store))
    with pytest.raises(Unacceptable) as caught:
        remembered(caller_of(store), fingerprint="other")
    assert caught.value.code == "idempotency_key_reused"


def test_the_key_of_another_is_another_key(store: World) -> None:
    caller = caller_of(store)
    remember(caller)
    assert remembered(replace(caller, tenant_id=store.stranger)) is None
    assert remembered(replace(caller, principal="key_2")) is None
    assert remembered(caller, ("POST", "/datasets", "k1")) is None
    assert remembered(caller, ("PUT", "/unlearn-requests", "k1")) is None


def test_what_failed_is_not_remembered(store: World) -> None:
    caller = caller_of(store)
    with contextlib.suppress(RuntimeError), transaction() as session:
        idempotency.remember(session, caller, *CALL, "f", status_code=202, headers={}, body={})
        raise RuntimeError
    assert remembered(caller) is None


@pytest.mark.parametrize(("path", "days"), [("/unlearn-requests", 30), ("/datasets", 1)])
def test_legal_answers_are_kept_longer(sqlite_store: World, path: str, days: int) -> None:
    remember(caller_of(sqlite_store), ("POST", path, "k"))
    with reading() as session:
        row = session.scalars(select(tables.IdempotencyKey)).one()
    assert abs(row.expires_at - datetime.now(UTC) - timedelta(days=days)) < timedelta(minutes=5)


def test_old_answers_are_forgotten(store: World) -> None:
    caller = caller_of(store)
    remember(caller)
    with transaction() as session:
        session.execute(update(tables.IdempotencyKey).values(expires_at=datetime.now(UTC)))
    assert remembered(caller) is None
    remember(caller)
    with transaction() as session:
        session.execute(update(tables.IdempotencyKey).values(expires_at=datetime.now(UTC)))
    with transaction() as session:
        assert jobs.sweep(session)["answers_forgotten"] == 1


@pytest.mark.postgres
def test_an_equal_call_at_work_elsewhere_is_refused(store: World) -> None:
    """On PostgreSQL; SQLite lets the second wait for the first."""
    if not store.settings.database_url:
        pytest.skip("SQLite has one writer")
    caller, caught = caller_of(store), []

    def second() -> None:
        try:
            remembered(caller)
        except Conflict as error:
            caught.append(error.code)

    with transaction() as session:
        idempotency.remembered(session, caller, *CALL, "f")
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert caught == ["idempotency_in_progress"]
    assert remembered(caller) is None
