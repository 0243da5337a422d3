"""Two sessions, one job: every order in which claim, cancel, commit and sweep can interleave.

Each actor is a list of verbs, one transaction each. All interleavings of two actors are played,
one after the other, on one store, each on a request of its own; then the promises are looked at.
Every day on SQLite; ``make slow`` has them on PostgreSQL, which every day gets the overlapping
form, in which both transactions are open at once and the second waits for the first.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from app.store import clock, jobs, models, requests, tables
from app.store.errors import Conflict
from app.store.session import reading, transaction
from tests import factories
from tests.chaos.sizes import measured
from tests.store.conftest import World


@dataclass
class Scene:
    """One request with its job, and the claims that its actors hold."""

    tenant: str
    model_id: str
    request_id: str
    job_id: str
    held: dict[str, jobs.Claim | None] = field(default_factory=dict)


Verb = Callable[[Session, Scene, str], object]


def claim(session: Session, scene: Scene, who: str) -> None:
    scene.held[who] = jobs.claim(session, scene.job_id, who)


def renew(session: Session, scene: Scene, who: str) -> None:
    if (held := scene.held.get(who)) is not None:
        jobs.renew(session, held, progress=0.5)


def publish(session: Session, scene: Scene, who: str) -> None:
    if (held := scene.held.get(who)) is not None:
        factories.publish(session, held)


def give_back(session: Session, scene: Scene, who: str) -> None:
    if (held := scene.held.get(who)) is not None:
        jobs.release(session, held)


def die(session: Session, scene: Scene, who: str) -> None:
    if (held := scene.held.get(who)) is not None:
        jobs.fail(session, held, "runner_died", "-", True)
        session.execute(update(tables.Job).values(run_after=0.0))


def expire(session: Session, scene: Scene, _: str) -> None:
    late = update(tables.Job).where(tables.Job.id == scene.job_id, tables.Job.status == "running")
    session.execute(late.values(lease_until=clock.now() - 1))


def sweep(session: Session, scene: Scene, _: str) -> None:
    jobs.sweep(session)


def lose(session: Session, scene: Scene, who: str) -> None:
    """The lease runs out, and the sweeper comes by."""
    expire(session, scene, who)
    sweep(session, scene, who)


def cancel_job(session: Session, scene: Scene, _: str) -> None:
    jobs.cancel(session, scene.tenant, scene.job_id)


def take_back(session: Session, scene: Scene, _: str) -> None:
    requests.cancel(session, scene.tenant, scene.request_id)


def delete(session: Session, scene: Scene, _: str) -> None:
    models.delete(session, scene.tenant, scene.model_id)


WORK: tuple[Verb, ...] = (claim, renew, publish)
OTHERS: dict[str, tuple[Verb, ...]] = {
    "worker": WORK,
    "drained": (claim, give_back),
    "dying": (claim, die),
    "sweeper": (lose, claim, publish),
    "canceller": (cancel_job,),
    "owner": (take_back,),
    "deleter": (delete,),
    "all": (lose, cancel_job, lose),
}


@pytest.mark.parametrize(
    "store",
    ["sqlite", pytest.param("postgres", marks=[pytest.mark.postgres, pytest.mark.slow])],
    indirect=True,
)
@pytest.mark.parametrize("other", OTHERS)
def test_every_order_of_transactions_keeps_the_promises(store: World, other: str) -> None:
    with transaction() as session:
        dataset = factories.a_dataset(session, store.tenant, factories.index(40, 4))
    all_orders = [*orders(WORK, OTHERS[other])]
    for order in all_orders:
        scene = setting(store, dataset.id)
        for who, verb in order:
            with contextlib.suppress(jobs.LeaseLost, Conflict), transaction() as session:
                verb(session, scene, who)
        look(scene)
    measured(orders=len(all_orders))


@pytest.mark.postgres
@pytest.mark.parametrize("store", ["postgres"], indirect=True)
@pytest.mark.parametrize(
    ("first", "second"),
    [
        *itertools.product(
            (claim, publish, cancel_job, take_back, sweep, give_back, delete), repeat=2
        )
    ],
)
def test_two_open_transactions_keep_the_promises(store: World, first: Verb, second: Verb) -> None:
    """The first waits, uncommitted, until the second has met its locks or is done."""
    with transaction() as session:
        dataset = factories.a_dataset(session, store.tenant)
    scene = setting(store, dataset.id)
    if claim not in (first, second):
        with transaction() as session:
            claim(session, scene, "a")
            if sweep in (first, second):
                expire(session, scene, "a")
        scene.held["b"] = scene.held["a"]
    acted, errors = threading.Event(), []

    def follow() -> None:
        acted.wait(10)
        try:
            with contextlib.suppress(jobs.LeaseLost, Conflict), transaction() as session:
                second(session, scene, "b")
        except Exception as error:  # noqa: BLE001  # shown by the assertion below
            errors.append(error)

    follower = threading.Thread(target=follow)
    follower.start()
    with contextlib.suppress(jobs.LeaseLost, Conflict), transaction() as session:
        try:
            first(session, scene, "a")
        finally:
            acted.set()
        follower.join(0.1)
    follower.join(30)
    assert not follower.is_alive()
    assert errors == []
    look(scene)
    measured(overlaps=1)


def orders(ours: Sequence[Verb], theirs: Sequence[Verb]) -> Iterator[list[tuple[str, Verb]]]:
    """Every way to merge two sequences that keeps the order of each."""
    length = len(ours) + len(theirs)
    for places in itertools.combinations(range(length), len(ours)):
        first, second = iter(ours), iter(theirs)
        yield [("a", next(first)) if at in places else ("b", next(second)) for at in range(length)]


def setting(store: World, dataset_id: str) -> Scene:
    with transaction() as session:
        model = factories.a_model(session, store.tenant, dataset_id=dataset_id)
        request = factories.a_request(session, store.tenant, model.id)
    return Scene(store.tenant, model.id, request.id, request.job_id)


def look(scene: Scene) -> None:
    """Hold what came out against the promises."""
    with reading() as session:
        job = jobs.get(session, scene.tenant, scene.job_id)
        request = requests.get(session, scene.tenant, scene.request_id)
        chosen = select(tables.Version).where(tables.Version.model_id == scene.model_id)
        versions = session.scalars(chosen.order_by(tables.Version.number)).all()
        model = session.get_one(tables.Model, (scene.tenant, scene.model_id))
    fitting = {
        "queued": {"queued"},
        "running": {"processing", "cancelled"},
        "succeeded": {"completed"},
        "cancelled": {"cancelled"},
    }
    assert request.status in fitting[job.status], (job.status, request.status)
    assert (job.lease_until is not None) == (job.status == "running")
    assert [version.number for version in versions] == [*range(1, len(versions) + 1)]
    assert len(versions) == 1 + (job.status == "succeeded")
    assert model.current_version_id == versions[-1].id
    assert job.attempts >= 0
