"""A database that gives a statement up, and one that lets a transaction wait."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import exc, text, update

from app.store import clock, endings, jobs, tables
from app.store.session import reading, transaction
from tests import factories
from tests.store.conftest import World

ROWS = factories.index()
pytestmark = [
    pytest.mark.postgres,
    pytest.mark.parametrize("store", ["postgres"], indirect=True),
]


def begun(world: World) -> jobs.Claim:
    with transaction() as session:
        _, job_id = factories.a_raw_dataset(session, world.tenant)
        claim = jobs.claim(session, job_id, "reader")
    assert claim is not None
    return claim


def test_a_database_that_gives_up_is_told_as_ever(store: World) -> None:
    claim = begun(store)

    def cut() -> Iterator[list[Any]]:
        yield from ROWS
        with transaction() as session:
            session.execute(
                text(
                    "select pg_cancel_backend(pid) from pg_stat_activity "
                    "where query like 'copy records%' and pid <> pg_backend_pid() "
                    "and datname = current_database()"
                )
            )

    with pytest.raises(exc.OperationalError), transaction() as session:
        jobs.add_to_index(session, claim, 0, cut())


def test_a_job_that_is_held_keeps_no_other_from_being_freed(store: World) -> None:
    held, lost = begun(store), begun(store)
    with transaction() as session:
        session.execute(update(tables.Job).values(lease_until=clock.now() - 1))
    counts: list[dict[str, int]] = []

    def sweep() -> None:
        with transaction() as session:
            counts.append(jobs.sweep(session))

    sweeper = threading.Thread(target=sweep)
    with transaction() as session:
        endings.lock(session, store.tenant, held.job.id)
        sweeper.start()
        sweeper.join(15)
        assert not sweeper.is_alive()
    sweeper.join()
    assert counts[0]["leases_freed"] == 1
    with reading() as session:
        assert jobs.get(session, store.tenant, lost.job.id).status == "queued"
        assert jobs.get(session, store.tenant, held.job.id).status == "running"
