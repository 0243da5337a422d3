"""What is asked or deleted again in a database that is older than the tombstones."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import delete

from app.store import jobs, keys, models, requests, tables
from app.store.errors import ServiceError
from app.store.session import reading, transaction
from app.store.tombstones import Tombstone, export, replay
from tests import factories
from tests.store.conftest import World


@pytest.fixture
def model_id(sqlite_store: World) -> str:
    with transaction() as session:
        return factories.a_model(session, sqlite_store.tenant).id


def stones() -> list[Tombstone]:
    with reading() as session:
        return [*export(session)]


def again(stone: Tombstone) -> bool:
    with transaction() as session:
        return replay(session, stone)


def forget_requests() -> None:
    """Have the database know of no request, as before they came."""
    with transaction() as session:
        session.execute(delete(tables.Request))
        session.execute(delete(tables.Job).where(tables.Job.kind == "unlearn"))


def a_lost_request(world: World, model_id: str) -> tuple[Tombstone, dict[str, Any]]:
    """The tombstone of a request that the restored database has never heard of, and its wish."""
    with transaction() as session:
        factories.a_request(session, world.tenant, model_id)
    (stone,) = stones()
    assert stone.request is not None
    forget_requests()
    return stone, stone.request


@pytest.mark.parametrize(
    ("selector", "rows"),
    [
        ({"record_ids": ["r3", "r1"]}, [1, 3]),
        ({"selector": "subject", "subject": "s2"}, [4, 5]),
        ({"selector": "class", "class_index": 1}, [1, 3, 5, 7, 9]),
    ],
)
def test_a_request_comes_back_as_it_was(
    sqlite_store: World, model_id: str, selector: dict[str, Any], rows: list[int]
) -> None:
    how = {
        "policy": "fast",
        "unlearner": {"name": "ssd"},
        "options": {"seed": 7},
        "priority": 3,
        "reason": "Art. 17(1)(b)",
        "purpose": "poison_removal",
        "meta": {"ticket": "4711"},
        "received_at": datetime.now(UTC) - timedelta(days=9),
    }
    with transaction() as session:
        made = factories.a_request(session, sqlite_store.tenant, model_id, **selector, **how)
    (stone,) = stones()
    forget_requests()
    assert again(stone)
    assert not again(stone)
    with reading() as session:
        found = requests.get(session, sqlite_store.tenant, made.id)
        job = jobs.get(session, sqlite_store.tenant, found.job_id)
    same = ("selector", "selector_class", "policy", "unlearner", "reason", "purpose", "meta")
    for name in (*same, "received_at", "due_at"):
        assert getattr(found, name) == getattr(made, name)
    assert (found.status, found.rows.tolist(), job.options) == ("queued", rows, {"seed": 7})
    assert job.priority == 3


def test_a_request_for_a_model_that_is_gone_is_not_asked_again(
    sqlite_store: World, model_id: str
) -> None:
    stone, wish = a_lost_request(sqlite_store, model_id)
    assert not again(stone.model_copy(update={"request": wish | {"model": "mdl_x"}}))
    with transaction() as session:
        models.delete(session, sqlite_store.tenant, model_id)
    assert not again(stone)


def test_only_open_requests_are_taken_back_again(sqlite_store: World, model_id: str) -> None:
    with transaction() as session:
        made = factories.a_request(session, sqlite_store.tenant, model_id)
        stuck = factories.a_request(session, sqlite_store.tenant, model_id, policy="fast")
        for each, is_done in ((made, True), (stuck, False)):
            held = jobs.claim(session, each.job_id, "w")
            assert held is not None
            if is_done:
                factories.publish(session, held)
            else:
                jobs.fail(session, held, "bad", "-", False)
    taken_back = [
        Tombstone(kind="cancelled_request", tenant=made.tenant_id, id=each.id, at=each.created_at)
        for each in (made, stuck)
    ]
    assert [again(stone) for stone in taken_back] == [False, True]
    assert [again(stone) for stone in taken_back] == [False, False]


def test_what_failed_for_good_is_not_tried_again(sqlite_store: World, model_id: str) -> None:
    with transaction() as session:
        made = factories.a_request(session, sqlite_store.tenant, model_id)
        held = jobs.claim(session, made.job_id, "w")
        assert held is not None
        jobs.fail(session, held, "bad", "-", False)
    (stone,) = stones()
    assert stone.request is not None
    assert not again(stone)
    assert again(stone.model_copy(update={"request": stone.request | {"status": "queued"}}))


def test_keys_end_at_the_earlier_of_two_times(sqlite_store: World) -> None:
    now = datetime.now(UTC)
    with transaction() as session:
        key, _ = keys.create(session, sqlite_store.tenant, "k", ["models:read"], None)
    assert stones() == []
    ends = [
        Tombstone(kind="key_end", tenant=key.tenant_id, id=key.id, at=now + timedelta(days=days))
        for days in (2, 3, 1)
    ]
    assert [again(stone) for stone in ends] == [True, False, True]
    revoked = Tombstone(kind="key", tenant=key.tenant_id, id=key.id, at=now)
    assert again(revoked)
    assert not again(revoked.model_copy(update={"at": now + timedelta(days=1)}))
    with reading() as session:
        found = session.get_one(tables.ApiKey, (key.tenant_id, key.id))
    assert (found.expires_at, found.revoked_at) == (ends[2].at, now)


def test_samples_that_were_erased_with_their_request_are_told(
    sqlite_store: World, model_id: str
) -> None:
    stone, wish = a_lost_request(sqlite_store, model_id)
    with pytest.raises(ServiceError) as refusal:
        again(stone.model_copy(update={"request": wish | {"selector": "samples"}}))
    assert refusal.value.code == "samples_erased"
