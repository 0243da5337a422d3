"""The nth call to the database fails, for every n of a job's way: nothing is half done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TypeVar

import pytest
from sqlalchemy import exc, select, update

from app.store import clock, jobs, tables, trash
from app.store.errors import ServiceError
from app.store.session import reading, transaction
from tests import factories
from tests.chaos.sizes import measured
from tests.store.conftest import World
from tests.trip import database_fails

T = TypeVar("T")
MOST = 400
STRIDE = 17


def test_a_request_survives_a_failed_call(sqlite_store: World) -> None:
    every(STRIDE, sqlite_store)


@pytest.mark.chaos
def test_a_request_survives_any_failed_call(store: World) -> None:
    measured(**every(1, store))


def every(stride: int, store: World) -> dict[str, int]:
    """Let each ``stride``-th call fail, until none is left; return what was counted."""
    with transaction() as session:
        dataset = factories.a_dataset(session, store.tenant, factories.index(MOST, 4))
        model = factories.a_model(session, store.tenant, dataset_id=dataset.id)
    for count, nth in enumerate(range(1, MOST, stride), 1):
        with database_fails(nth) as trip:
            request_id = ask(store, model.id, f"r{nth}")
            work(request_id)
            insist(empty_trash)
        counts = check(store, model.id, count)
        if not trip.has_failed:
            return {"calls_failed": count - 1, **counts}
    raise AssertionError("the way never ends")


def ask(store: World, model_id: str, record: str) -> str:
    """Send a request, again if there was no answer; what was sent before is refused as done."""

    def act() -> str:
        with transaction() as session:
            open_ones = select(tables.Request).where(tables.Request.model_id == model_id)
            for known in session.scalars(open_ones):
                if known.reason == record:
                    return known.id
            made = factories.a_request(
                session, store.tenant, model_id, record_ids=[record], reason=record
            )
            return made.id

    return insist(act)


def work(request_id: str) -> None:
    """Do as workers do until the request is completed."""
    while True:
        with_request = select(tables.Request).where(tables.Request.id == request_id)
        try:
            with reading() as session:
                request = session.scalars(with_request).one()
                if request.status == "completed":
                    return
            with transaction() as session:
                held = jobs.claim(session, request.job_id, "w")
            if held is None:
                recover()
                continue
            with transaction() as session:
                jobs.renew(session, held, progress=0.5)
            with transaction() as session:
                factories.publish(session, held)
        except (exc.OperationalError, jobs.LeaseLost):
            continue


def recover() -> None:
    """Do as the sweeper does once a lease has run out."""
    with transaction() as session:
        running = update(tables.Job).where(tables.Job.status == "running")
        session.execute(running.values(lease_until=clock.now() - 1))
        jobs.sweep(session)


def empty_trash() -> None:
    with transaction() as session:
        trash.removed(session, trash.pending(session))


def check(store: World, model_id: str, count: int) -> dict[str, int]:
    with reading() as session:
        asked = session.scalars(select(tables.Request)).all()
        chosen = select(tables.Version).where(tables.Version.role == "chain")
        versions = session.scalars(chosen.order_by(tables.Version.number)).all()
        model = session.get_one(tables.Model, (store.tenant, model_id))
        found = session.scalars(select(tables.Job).where(tables.Job.kind == "unlearn")).all()
    assert [request.status for request in asked] == ["completed"] * count
    assert [version.number for version in versions] == [*range(1, count + 2)]
    assert model.current_version_id == versions[-1].id
    assert {request.applied_version_id for request in asked} == {v.id for v in versions[1:]}
    assert all(job.status == "succeeded" and job.lease_until is None for job in found)
    forgotten = Counter(row for request in asked for row in request.rows.tolist())
    twice = sum(times > 1 for times in forgotten.values())
    assert not twice
    completed = sum(request.status == "completed" for request in asked)
    return {"requests": len(asked), "lost": count - completed, "applied_twice": twice}


def insist(act: Callable[[], T]) -> T:
    while True:
        try:
            return act()
        except (exc.OperationalError, ServiceError):
            continue
