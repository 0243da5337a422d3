"""The figures of operators, on each database."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import update

from app.store import clock, figures, jobs, tables, workers
from app.store import session as sessions
from app.store.session import reading, transaction
from tests import factories
from tests.store.conftest import World


def read(name: str) -> figures.Values:
    (figure,) = [figure for figure in figures.FIGURES if figure.name == name]
    with reading() as session:
        return figure.read(session)


def asked(store: World, **over: object) -> tables.Request:
    with transaction() as session:
        model = factories.a_model(session, store.tenant)
        return factories.a_request(session, store.tenant, model.id, **over)


def claimed(request: tables.Request) -> jobs.Claim:
    with transaction() as session:
        claim = jobs.claim(session, request.job_id, "w")
    assert claim is not None
    return claim


def change(**values: object) -> None:
    with transaction() as session:
        session.execute(update(tables.Job).values(**values))


def attempts_since(before: figures.Values) -> dict[str, float]:
    """Attempts that ended meanwhile, by outcome; what did not change is left out."""
    found = {name: value - before[name,] for (name,), value in read("attempts_total").items()}
    return {name: num for name, num in found.items() if num}


def test_an_empty_store_has_every_figure(store: World) -> None:
    for figure in figures.FIGURES:
        values = read(figure.name)
        assert all(len(labels) == len(figure.labels) for labels in values), figure.name
        assert all(value == 0 for value in values.values()), figure.name
    with reading() as session:
        assert figures.erasure(session) == {}
        assert abs(figures.skew(session)) < 5


def test_a_job_from_queue_to_end(store: World) -> None:
    request = asked(store)
    hour_ago = datetime.now(UTC) - timedelta(hours=1)
    change(created_at=hour_ago)
    assert read("jobs")["unlearn", "queued"] == 1
    assert read("jobs_due") == {(): 1}
    assert read("oldest_job_seconds")["queued",] == pytest.approx(3600, abs=60)
    assert read("dispatch_lag_seconds")[()] == pytest.approx(3600, abs=60)
    assert read("requests")["queued",] == 1
    before = read("attempts_total")
    claim = claimed(request)
    assert read("oldest_job_seconds")["queued",] == 0
    assert read("oldest_job_seconds")["running",] < 60
    assert attempts_since(before) == {}, "it is not over"
    with transaction() as session:
        jobs.release(session, claim)
    assert attempts_since(before) == {"other": 1}
    claim = claimed(request)
    assert attempts_since(before) == {"other": 1}
    with transaction() as session:
        factories.publish(session, claim)
    assert attempts_since(before) == {"other": 1, "succeeded": 1}
    assert read("jobs")["unlearn", "succeeded"] == 1
    assert read("versions") == {
        ("validating",): 0,
        ("ready",): 1,
        ("rejected",): 0,
        ("withdrawn",): 1,
    }
    assert read("trash")[()] > 0
    assert 0 <= read("oldest_trash_seconds")[()] < 60


def test_a_lease_that_ran_out_twice(store: World) -> None:
    claimed(asked(store))
    with transaction() as session:
        past = clock.now() - 10
        running = update(tables.Job).where(tables.Job.status == "running")
        session.execute(running.values(lease_until=past, lost_leases=1))
    assert read("expired_leases") == {(): 1}
    assert read("jobs_lost_twice") == {(): 0}
    with transaction() as session:
        jobs.sweep(session)
    assert read("expired_leases") == {(): 0}
    assert read("jobs_lost_twice") == {(): 1}
    assert read("lost_leases_total") == {(): 2}


def test_codes_of_failures_come_from_a_closed_list(store: World) -> None:
    for code in ("out_of_memory", "someone_example_org"):
        claim = claimed(asked(store))
        with transaction() as session:
            jobs.fail(session, claim=claim, code=code, detail="", retryable=False)
    found = read("failures_total")
    assert (found["out_of_memory",], found[figures.REFUSED,]) == (1, 1)
    assert sum(found.values()) == 2
    assert read("requests")["needs_attention",] == 2


def test_dates(store: World) -> None:
    now = datetime.now(UTC)
    for due in (now - timedelta(days=1), now + timedelta(days=1), now + timedelta(days=20)):
        request = asked(store)
        with transaction() as session:
            one = update(tables.Request).where(tables.Request.id == request.id)
            session.execute(one.values(due_at=due))
    assert read("requests_overdue") == {(): 1}
    assert read("requests_due_soon") == {(): 1}


def test_time_to_erasure(store: World) -> None:
    with transaction() as session:
        factories.publish(session, claimed(asked(store)))
    with transaction() as session:
        session.execute(
            update(tables.Request).values(
                created_at=datetime.now(UTC) - timedelta(minutes=2), completed_at=datetime.now(UTC)
            )
        )
    with reading() as session:
        (found,) = figures.erasure(session).values()
    assert found.counts == (0, 0, 0, *[1] * (len(figures.BUCKETS) - 2))
    assert found.total == pytest.approx(120, abs=1)


def test_gates_and_rungs_of_the_last_day(store: World) -> None:
    claim = claimed(asked(store))
    with transaction() as session:
        factories.publish(session, claim)
        for index, (method, verdict) in enumerate(
            [("ssd", "failed"), ("someone_example_org", "passed")], 10
        ):
            body = {
                "unlearner": {"name": method},
                "status": "refused",
                "gates": [{"kind": "utility", "verdict": verdict}],
            }
            row = {"tenant_id": store.tenant, "job_id": claim.job.id, "index": index}
            session.add(tables.Rung(**row, body=body))
    before = read("gates_last_day")
    assert before["utility", "failed"] == 1
    assert before["utility", "passed"] >= 1
    assert read("rungs_last_day")["ssd", "refused"] == 1
    assert read("rungs_last_day")["other", "refused"] == 1
    change(finished_at=datetime.now(UTC) - timedelta(days=2))
    assert set(read("gates_last_day").values()) == {0}


def test_workers(store: World) -> None:
    with transaction() as session:
        workers.seen(session, "w1", "celery", 1)
        workers.seen(session, "w2", "celery", 2)
    assert read("workers") == {("celery",): 2, ("embedded",): 0}
    assert read("worker_slots") == {(): 3}
    assert read("worker_memory_bytes") == {(): 0}
    with transaction() as session:
        workers.seen(session, "w1", "celery", 1, "L1", 5)
        workers.seen(session, "w2", "celery", 2, "L0", 7)
    assert read("sandbox_level") == {("L0",): 1, ("L1",): 1, ("L2",): 0}
    assert read("worker_memory_bytes") == {(): 7}
    with transaction() as session:
        workers.leave(session, "w2")
    assert read("sandbox_level") == {("L0",): 0, ("L1",): 1, ("L2",): 0}


def test_what_workers_see(store: World) -> None:
    assert read("worker_free_share") == {}, "nobody has looked"
    assert read("missing_blobs") == {(): 0}
    with transaction() as session:
        workers.seen(session, "w1", "celery", 1)
        workers.seen(session, "w2", "celery", 1, scratch_free_share=0.5, missing_blobs=0)
        workers.seen(session, "w3", "celery", 1, scratch_free_share=0.25, missing_blobs=2)
    assert read("worker_free_share") == {(): 0.25}
    assert read("missing_blobs") == {(): 2}
    with transaction() as session:
        workers.leave(session, "w3")
    assert read("worker_free_share") == {(): 0.5}
    assert read("missing_blobs") == {(): 0}


@pytest.mark.parametrize("is_last", [False, True])
def test_attempts_by_outcome(store: World, is_last: bool) -> None:
    most = 1 if is_last else 3
    sessions.configure(
        store.settings.model_copy(update={"max_runner_deaths": most, "max_lost_leases": most})
    )
    died, lost = asked(store), asked(store)
    before = read("attempts_total")
    claim = claimed(died)
    with transaction() as session:
        jobs.fail(session, claim, "runner_died", "", retryable=True)
    claimed(lost)
    with transaction() as session:
        jobs.free_all(session)
    assert read("jobs")["unlearn", "failed"] == 2 * is_last
    assert attempts_since(before) == {"runner_died": 1, "lease_lost": 1}


def test_bytes_that_are_kept(store: World) -> None:
    request = asked(store)
    kept = read("stored_bytes")
    assert kept["weights",] > 0
    assert kept["datasets",] > 0
    with transaction() as session:
        session.execute(update(tables.Version).values(blob=None))
    assert read("stored_bytes")["weights",] == 0
    assert request.call_id is None
