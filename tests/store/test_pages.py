"""Pages and their cursors."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from app.store import pages, tables
from app.store.errors import BadRequest
from app.store.session import reading, transaction
from tests import factories
from tests.store.conftest import World

ALL = select(tables.Dataset)


@pytest.fixture
def ids(store: World) -> list[str]:
    """Ids of five datasets, newest first; the stranger has one too."""
    with transaction() as session:
        factories.a_raw_dataset(session, store.stranger)
        made = [factories.a_raw_dataset(session, store.tenant)[0].id for _ in range(5)]
    return made[::-1]


def page(store: World, **over: object) -> pages.Page:
    with reading() as session:
        return pages.page(session, ALL, **({"tenant": store.tenant, "limit": 2} | over))


def shown(found: pages.Page) -> list[str]:
    return [row.id for row in found.rows]


def test_walking_shows_every_row_once(store: World, ids: list[str]) -> None:
    walked, cursor = [], None
    while True:
        found = page(store, after=cursor)
        walked += shown(found)
        cursor = found.next_cursor
        assert found.has_more == (cursor is not None)
        if cursor is None:
            break
    assert walked == ids


def test_before_shows_the_rows_just_newer(store: World, ids: list[str]) -> None:
    second = page(store, after=page(store).next_cursor)
    assert second.next_cursor is not None
    newer = page(store, before=second.next_cursor)
    assert shown(newer) == ids[1:3]
    assert newer.has_more
    newest = page(store, before=newer.next_cursor)
    assert shown(newest) == ids[:1]
    assert not newest.has_more


def test_a_row_that_arrives_meanwhile_shifts_nothing(store: World, ids: list[str]) -> None:
    first = page(store)
    with transaction() as session:
        factories.a_raw_dataset(session, store.tenant)
    assert shown(page(store, after=first.next_cursor)) == ids[2:4]


def test_only_own_cursors_of_the_same_list_are_taken(store: World, ids: list[str]) -> None:
    cursor = page(store).next_cursor
    assert cursor is not None
    last_id, _, signature = cursor.rpartition(".")
    other_list = pages._write(last_id, store.tenant, "models")
    foreign = pages._write(last_id, store.stranger, "datasets")
    edited = f"{ids[-1]}.{signature}"
    for wrong in (other_list, foreign, edited, last_id, "", ".", "\ud800", "x" * 500):
        with pytest.raises(BadRequest) as caught:
            page(store, after=wrong)
        assert caught.value.code == "cursor_invalid"


def test_foreign_rows_are_never_shown(store: World, ids: list[str]) -> None:
    assert set(shown(page(store, limit=100))) == set(ids)
