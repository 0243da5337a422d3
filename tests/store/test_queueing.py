"""Which jobs are due, and the thread that rings for them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from types import SimpleNamespace

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session

from app import bell, dispatch
from app.store import clock, jobs, tables, workers
from app.store import partial as partial_uploads
from app.store.jobs.queueing import next_ids
from app.store.session import reading, transaction
from tests import factories
from tests.store.conftest import World


def due(limit: int | None = None) -> list[str]:
    with reading() as session:
        return jobs.due(session, limit)


@pytest.mark.parametrize("part", ["dataset_id", "holdout_dataset_id"])
def test_a_prepare_waits_for_its_datasets(store: World, part: str) -> None:
    with transaction() as session:
        dataset, reading_job = factories.a_raw_dataset(session, store.tenant)
        there = {"dataset_id": factories.a_dataset(session, store.tenant).id}
        over = there | {part: dataset.id}
        _, _, job_id = factories.a_raw_model(session, store.tenant, **over)
        assert jobs.claim(session, job_id, "w") is None
        assert factories.waiting_on(session, jobs.get(session, store.tenant, job_id)) == "model"
    assert due() == [reading_job]
    with transaction() as session:
        rows = [[f"h{row}", row % 2, "holdout", None] for row in range(4)]
        factories.ingest(session, reading_job, [*factories.index(0, 0), *rows])
    assert due() == [job_id]


def test_per_model_the_oldest_goes_first_and_alone(store: World) -> None:
    with transaction() as session:
        model = factories.a_model(session, store.tenant)
        first = factories.a_request(session, store.tenant, model.id).job_id
        second = factories.a_request(session, store.tenant, model.id, policy="fast").job_id
    assert due() == [first]
    with transaction() as session:
        held = jobs.claim(session, first, "w")
        assert held is not None
        waiting = factories.waiting_on(session, jobs.get(session, store.tenant, second))
    assert waiting == "model_lock"
    assert due() == []
    with transaction() as session:
        jobs.fail(session, held, "bad", "-", False)
    assert due() == [second]


@pytest.mark.parametrize("end", [jobs.cancelled, partial(jobs.release, delay=60.0)])
def test_what_was_rung_in_vain_is_rung_when_the_model_is_free(
    store: World, end: Callable[[Session, jobs.Claim], None]
) -> None:
    with transaction() as session:
        model = factories.a_model(session, store.tenant)
        first = factories.a_request(session, store.tenant, model.id).job_id
        second = factories.a_request(session, store.tenant, model.id, policy="fast").job_id
        jobs.stamp_dispatched(session, [first, second])
        held = jobs.claim(session, first, "w")
        assert held is not None
        end(session, held)
    assert due() == [second]


def test_a_job_that_lost_its_worker_is_rung_at_once(store: World) -> None:
    with transaction() as session:
        _, job_id = factories.a_raw_dataset(session, store.tenant)
        jobs.stamp_dispatched(session, [job_id])
        assert jobs.claim(session, job_id, "w") is not None
        jobs.free_all(session)
    assert due() == [job_id]


def test_a_rung_job_is_rung_again_only_later(store: World) -> None:
    with transaction() as session:
        _, job_id = factories.a_raw_dataset(session, store.tenant)
        jobs.stamp_dispatched(session, [job_id])
    assert due() == []
    long_ago = clock.now() - store.settings.redispatch_seconds - 1
    with transaction() as session:
        session.execute(update(tables.Job).values(dispatched_at=long_ago))
    assert due() == [job_id]


def test_only_a_window_of_the_queue_is_ever_rung(store: World) -> None:
    with transaction() as session:
        made = [factories.a_raw_dataset(session, store.tenant)[1] for _ in range(5)]
        jobs.stamp_dispatched(session, made[:2])
    assert due(limit=3) == [made[2]]


def test_the_window_grows_with_the_workers(store: World) -> None:
    with transaction() as session:
        for _ in range(40):
            factories.a_raw_dataset(session, store.tenant)
    assert len(due()) == 32
    with transaction() as session:
        workers.seen(session, "w1", "celery", slots=18)
    assert len(due()) == 36


def test_a_backlog_for_accelerators_keeps_no_upload_waiting(store: World) -> None:
    with transaction() as session:
        first = [
            factories.a_request(
                session, store.tenant, factories.a_model(session, store.tenant).id
            ).job_id
            for _ in range(3)
        ]
        _, upload = factories.a_raw_dataset(session, store.tenant)
    assert due(limit=2) == [upload, *first[:2]]
    with transaction() as session:
        jobs.stamp_dispatched(session, first[:2])
    assert due(limit=2) == [upload]


def test_each_of_many_workers_finds_a_job(store: World) -> None:
    """They all ask at once, and are told the same."""
    with transaction() as session:
        made = [factories.a_raw_dataset(session, store.tenant)[1] for _ in range(12)]
    with reading() as session:
        assert next_ids(session, ["cpu"]) == made


def test_workers_that_fall_silent_are_not_counted(store: World) -> None:
    with transaction() as session:
        workers.seen(session, "w1", "celery", slots=1)
        workers.seen(session, "w2", "celery", slots=1)
        workers.leave(session, "w2")
        assert [each.id for each in workers.live(session)] == ["w1"]
        session.execute(update(tables.Worker).values(seen_at=1.0))
    with transaction() as session:
        assert workers.live(session) == []
        assert jobs.sweep(session)["workers_forgotten"] == 1


class Line:
    """A bell that writes down what it rings for, and can be cut."""

    def __init__(self) -> None:
        self.rung: list[str] = []
        self.cut = False
        self.heard = threading.Event()

    def send(self, *job_ids: str, need: str = "cpu") -> None:
        if self.cut:
            self.heard.set()
            raise ConnectionError
        self.rung += job_ids
        self.heard.set()


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Line:
    """In place of the broker."""
    made = Line()
    monkeypatch.setattr(bell, "send", made.send)
    return made


def test_a_pass_rings_once(store: World, line: Line) -> None:
    with transaction() as session:
        _, job_id = factories.a_raw_dataset(session, store.tenant)
    assert dispatch.dispatch() == [job_id]
    assert dispatch.dispatch() == []
    assert line.rung == [job_id]


def test_a_dead_broker_loses_nothing(store: World, line: Line) -> None:
    """The nudge comes after the job; then the line is mended and the next pass rings."""
    line.cut = True
    settings = store.settings.model_copy(update={"dispatch_seconds": 0.05})
    with transaction() as session:
        _, job_id = factories.a_raw_dataset(session, store.tenant)
    dispatcher = dispatch.Dispatcher(settings)
    dispatcher.start()
    assert line.heard.wait(30)
    line.cut = False
    line.heard.clear()
    assert line.heard.wait(30)
    dispatcher.stop()
    assert line.rung == [job_id]
    assert not dispatcher._thread.is_alive()


def test_a_nudge_wakes_the_dispatcher(store: World, line: Line) -> None:
    dispatcher = dispatch.Dispatcher(store.settings.model_copy(update={"dispatch_seconds": 3600.0}))
    dispatcher.start()
    with transaction() as session:
        _, job_id = factories.a_raw_dataset(session, store.tenant)
    while not line.heard.wait(0.05):
        bell.nudge()
    dispatcher.stop()
    assert line.rung == [job_id]


class Rests(threading.Event):
    """Notes how long is waited, waits for nothing, and is set after the third time."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float | None] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.seconds.append(timeout)
        if len(self.seconds) == 3:
            self.set()
        return self.is_set()


def test_after_a_long_pass_it_rests_whatever_nudges_it(
    store: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, lasting = 0.0, iter([0.001, 0.1, 50.0])

    def slow_pass() -> None:
        nonlocal now
        now += next(lasting)
        bell.nudge()

    monkeypatch.setattr(dispatch, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(dispatch, "dispatch", slow_pass)
    dispatcher = dispatch.Dispatcher(store.settings.model_copy(update={"dispatch_seconds": 2.0}))
    rests = dispatcher._closing = Rests()
    dispatcher.start()
    dispatcher._thread.join(30)
    assert rests.seconds == pytest.approx([0.004, 0.4, 2.0])


def test_bytes_of_ended_uploads_are_removed(store: World, line: Line) -> None:
    left = partial_uploads.path(store.tenant, "upl_1")
    left.parent.mkdir(parents=True)
    left.write_bytes(b"what a killed service left behind")
    with transaction() as session:
        factories.a_raw_dataset(session, store.tenant)
    dispatcher = dispatch.Dispatcher(store.settings)
    dispatcher.start()
    assert line.heard.wait(30)
    dispatcher.stop()
    assert not left.exists()


def test_tenants_take_turns(store: World) -> None:
    """Whoever has much to do does not keep the others waiting."""
    with transaction() as session:
        many = [factories.a_raw_dataset(session, store.tenant)[1] for _ in range(3)]
        few = [factories.a_raw_dataset(session, store.stranger)[1] for _ in range(2)]
    assert due() == [many[0], few[0], many[1], few[1], many[2]]
    with transaction() as session:
        assert jobs.claim(session, many[0], "w") is not None
    assert due() == [few[0], many[1], few[1], many[2]], "what runs counts as a turn"


def test_within_a_tenant_priority_then_the_day_it_is_due(store: World) -> None:
    long_ago = datetime.now(UTC) - timedelta(days=20)
    with transaction() as session:
        late, old, high, low = (
            factories.a_request(
                session, store.tenant, factories.a_model(session, store.tenant).id, **over
            ).job_id
            for over in ({}, {"received_at": long_ago}, {"priority": 1}, {"priority": -1})
        )
    assert due() == [high, old, late, low]


def test_a_job_is_as_urgent_as_its_most_urgent_request(store: World) -> None:
    with transaction() as session:
        model = factories.a_model(session, store.tenant)
        first = factories.a_request(session, store.tenant, model.id)
        asked = datetime.now(UTC) - timedelta(days=9)
        second = factories.a_request(
            session, store.tenant, model.id, record_ids=["r1"], received_at=asked, priority=1
        )
        third = factories.a_request(session, store.tenant, model.id, record_ids=["r2"])
        assert first.job_id == second.job_id == third.job_id
        job = jobs.get(session, store.tenant, first.job_id)
        assert (job.due_at, job.priority) == (second.due_at, 1)


def test_a_worker_takes_whose_turn_it_is_of_what_it_can_do(store: World) -> None:
    with transaction() as session:
        model = factories.a_model(session, store.tenant)
        erasure = factories.a_request(session, store.tenant, model.id).job_id
        _, upload = factories.a_raw_dataset(session, store.stranger)
    with transaction() as session:
        assert jobs.needs_of(session, [erasure, upload]) == {erasure: "gpu", upload: "cpu"}
        held = jobs.claim_next(session, "reader", ("cpu",))
        assert held is not None
        assert held.job.id == upload
        assert jobs.claim_next(session, "reader", ("cpu",)) is None
        held = jobs.claim_next(session, "both", ("cpu", "gpu"))
        assert held is not None
        assert held.job.id == erasure


def test_bells_ring_where_the_work_can_be_done(
    store: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    rung: list[tuple[str, tuple[str, ...]]] = []
    monkeypatch.setattr(bell, "send", lambda *ids, need: rung.append((need, ids)))
    with transaction() as session:
        model = factories.a_model(session, store.tenant)
        erasure = factories.a_request(session, store.tenant, model.id).job_id
        _, upload = factories.a_raw_dataset(session, store.tenant)
    dispatch.dispatch()
    assert rung == [("cpu", (upload,)), ("gpu", (erasure,))]
