"""Claim, lease and epoch."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from app.store import clock, endings, jobs, requests, tables
from app.store import session as sessions
from app.store.session import reading, transaction
from tests import factories
from tests.store.conftest import World


@pytest.fixture
def asked(store: World) -> str:
    """Id of a queued unlearn job of one request."""
    with transaction() as session:
        model = factories.a_model(session, store.tenant)
        return factories.a_request(session, store.tenant, model.id).job_id


def claim(job_id: str, owner: str = "w") -> jobs.Claim | None:
    with transaction() as session:
        return jobs.claim(session, job_id, owner)


def must_claim(job_id: str) -> jobs.Claim:
    found = claim(job_id)
    assert found is not None
    return found


def job_of(store: World, job_id: str) -> tables.Job:
    with reading() as session:
        return jobs.get(session, store.tenant, job_id)


def expire(job_id: str) -> dict[str, int]:
    with transaction() as session:
        session.execute(
            update(tables.Job).where(tables.Job.id == job_id).values(lease_until=clock.now() - 1)
        )
        return jobs.sweep(session)


def test_of_eight_racing_claims_one_wins(store: World, asked: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        won = [each for each in pool.map(lambda n: claim(asked, f"w{n}"), range(8)) if each]
    assert len(won) == 1
    job = job_of(store, asked)
    assert (job.epoch, job.attempts, job.status) == (1, 1, "running")
    assert job.lease_owner == won[0].job.lease_owner


def test_of_racing_jobs_of_one_model_one_runs(store: World) -> None:
    with transaction() as session:
        model = factories.a_model(session, store.tenant)
        made = [
            factories.a_request(
                session, store.tenant, model.id, record_ids=[f"r{n}"], options={"seed": n}
            )
            for n in range(4)
        ]
    with ThreadPoolExecutor(4) as pool:
        won = [each for each in pool.map(claim, [each.job_id for each in made]) if each]
    assert len(won) == 1


@pytest.mark.parametrize("job_id", ["", "job_x", "'; drop table jobs"])
def test_a_forged_message_claims_nothing(store: World, job_id: str) -> None:
    assert claim(job_id) is None


def test_a_claim_carries_what_the_work_needs(store: World) -> None:
    with transaction() as session:
        model = factories.a_model(session, store.tenant)
        request = factories.a_request(session, store.tenant, model.id, record_ids=["r3", "r1"])
    held = must_claim(request.job_id)
    assert held.model is not None
    assert held.version is not None
    assert held.dataset is not None
    assert held.version.id == model.current_version_id == held.job.version_id
    assert held.dataset.id == model.dataset_id
    assert [*held.requests[request.id]] == [1, 3]
    assert not held.nothing_left
    assert held.selector == "records"
    with reading() as session:
        assert requests.get(session, store.tenant, request.id).status == "processing"


def test_a_class_request_names_its_class(store: World) -> None:
    with transaction() as session:
        model = factories.a_model(session, store.tenant)
        request = factories.a_request(
            session, store.tenant, model.id, selector="class", class_index=1
        )
    held = must_claim(request.job_id)
    assert (held.selector, held.forget_classes) == ("class", (1,))
    assert [*held.requests[request.id]] == [1, 3, 5, 7, 9]


def test_renewing_prolongs_the_lease_and_stores_progress(store: World, asked: str) -> None:
    held = must_claim(asked)
    before = job_of(store, asked)
    with transaction() as session:
        session.execute(update(tables.Job).values(lease_until=1.0).where(tables.Job.id == asked))
    news: dict[str, Any] = {"phase": "unlearning", "progress": 0.5, "metrics": {"loss": 1.0}}
    with transaction() as session:
        assert jobs.renew(session, held, **news) == jobs.Renewal(alive=True, cancel=False)
    after = job_of(store, asked)
    assert (after.phase, after.progress, after.metrics) == ("unlearning", 0.5, {"loss": 1.0})
    assert after.lease_until is not None
    assert after.lease_until > 1.0
    assert after.revision == before.revision + 1


def test_the_revision_grows_only_with_news(store: World, asked: str) -> None:
    held = must_claim(asked)
    for news in ({"progress": 0.5}, {"progress": 0.5}, {}):
        with transaction() as session:
            jobs.renew(session, held, **news)
        revision = job_of(store, asked).revision
    assert revision == held.job.revision + 1


ENDS: dict[str, Callable[[Any, jobs.Claim], object]] = {
    "publish": factories.publish,
    "exhaust": lambda session, held: jobs.exhaust(
        session, held, code="ladder_exhausted", detail="-", rungs=[]
    ),
    "without_influence": jobs.finish_without_influence,
    "fail": lambda session, held: jobs.fail(session, held, "bad", "-", False),
    "retry": lambda session, held: jobs.fail(session, held, "runner_died", "-", True),
    "release": jobs.release,
    "cancelled": jobs.cancelled,
}


def test_a_zombie_changes_nothing(store: World, asked: str) -> None:
    zombie = must_claim(asked)
    expire(asked)
    winner = must_claim(asked)
    before = job_of(store, asked)
    for end in ENDS.values():
        with pytest.raises(jobs.LeaseLost), transaction() as session:
            end(session, zombie)
    after = job_of(store, asked)
    assert (after.status, after.epoch, after.revision) == ("running", 2, before.revision)
    with transaction() as session:
        assert not jobs.renew(session, zombie).alive
        assert jobs.renew(session, winner).alive


@pytest.mark.parametrize("first", ["publish", "exhaust", "cancelled"])
def test_terminal_states_never_change(store: World, asked: str, first: str) -> None:
    held = must_claim(asked)
    with transaction() as session:
        ENDS[first](session, held)
    before = job_of(store, asked)
    for end in ENDS.values():
        with pytest.raises(jobs.LeaseLost), transaction() as session:
            end(session, held)
    with transaction() as session:
        assert not jobs.renew(session, held).alive
        assert jobs.free_all(session) == 0
    assert claim(asked) is None
    after = job_of(store, asked)
    assert (after.status, after.revision) == (before.status, before.revision)


def test_a_lost_lease_goes_back_at_once_and_is_counted(store: World, asked: str) -> None:
    held = must_claim(asked)
    assert expire(asked)["leases_freed"] == 1
    job = job_of(store, asked)
    assert (job.status, job.lost_leases, job.attempts) == ("queued", 1, 1)
    with reading() as session:
        assert jobs.due(session) == [asked]
        for request_id in held.requests:
            assert requests.get(session, store.tenant, request_id).status == "queued"


def test_a_live_lease_is_left_alone(store: World, asked: str) -> None:
    must_claim(asked)
    with transaction() as session:
        assert jobs.sweep(session)["leases_freed"] == 0
    assert job_of(store, asked).status == "running"


@pytest.mark.parametrize("act", [jobs.renew, jobs.cancelled])
def test_a_job_that_moves_on_at_the_last_moment_is_left_alone(
    store: World,
    asked: str,
    act: Callable[[Session, jobs.Claim], object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held = must_claim(asked)

    def lock(session: Session, *which: str, **how: bool) -> tables.Job | None:
        act(session, held)
        return endings.lock(session, *which, **how)

    monkeypatch.setattr("app.store.jobs.recovery.lock", lock)
    assert expire(asked)["leases_freed"] == 0
    assert job_of(store, asked).status == ("running" if act is jobs.renew else "cancelled")


def test_too_many_lost_leases_fail_the_job(store: World, asked: str) -> None:
    for _ in range(store.settings.max_lost_leases):
        held = must_claim(asked)
        expire(asked)
    job = job_of(store, asked)
    assert job.status == "failed"
    assert job.error is not None
    assert job.error["code"] == "worker_lost"
    with reading() as session:
        request = requests.get(session, store.tenant, next(iter(held.requests)))
    assert (request.status, request.outcome) == ("needs_attention", "not_erased")
    assert request.problem == job.error


def test_runner_deaths_back_off_and_then_fail(store: World, asked: str) -> None:
    states = []
    for _ in range(store.settings.max_runner_deaths):
        held = must_claim(asked)
        with transaction() as session:
            states.append(jobs.fail(session, held, "runner_died", "killed", True))
            waiting = factories.waiting_on(session, jobs.get(session, store.tenant, asked))
            session.execute(update(tables.Job).values(run_after=0.0))
    assert states == ["queued", "queued", "failed"]
    assert waiting is None
    job = job_of(store, asked)
    assert job.error is not None
    assert (job.runner_deaths, job.lost_leases, job.error["code"]) == (3, 0, "runner_died")


def test_each_death_is_followed_by_a_longer_wait(store: World, asked: str) -> None:
    settings = store.settings.model_copy(update={"retry_backoff_seconds": (100.0, 200.0)})
    sessions.configure(settings.model_copy(update={"max_runner_deaths": 4}))
    waits, is_asked = [], tables.Job.id == asked
    for _ in range(3):
        held = must_claim(asked)
        with transaction() as session:
            jobs.fail(session, held, "runner_died", "killed", True)
            waits.append(session.scalar(select(tables.Job.run_after - clock.now()).where(is_asked)))
            session.execute(update(tables.Job).values(run_after=0.0))
    assert waits == pytest.approx([100.0, 200.0, 200.0], abs=20.0)


def test_a_job_that_goes_back_shows_nothing_of_the_attempt(store: World, asked: str) -> None:
    held = must_claim(asked)
    news: dict[str, Any] = {"phase": "unlearning", "progress": 0.5, "eta_seconds": 9.0}
    with transaction() as session:
        jobs.renew(session, held, **news, rung={"index": 0}, metrics={"loss": 1.0})
    before = job_of(store, asked)
    assert before.rung == {"index": 0}
    expire(asked)
    after = job_of(store, asked)
    assert (after.phase, after.progress, after.eta_seconds) == (None, 0.0, None)
    assert (after.rung, after.metrics, after.lease_owner) == (None, {}, None)
    assert after.revision == before.revision + 1
    assert must_claim(asked).job.started_at == before.started_at is not None


def test_a_job_in_back_off_is_not_due(store: World, asked: str) -> None:
    held = must_claim(asked)
    with transaction() as session:
        jobs.fail(session, held, "runner_died", "killed", True)
    assert claim(asked) is None
    with reading() as session:
        assert jobs.due(session) == []
        assert factories.waiting_on(session, jobs.get(session, store.tenant, asked)) == "backoff"


def test_a_released_job_gets_its_attempt_back(store: World, asked: str) -> None:
    held = must_claim(asked)
    with transaction() as session:
        jobs.release(session, held)
    job = job_of(store, asked)
    assert (job.status, job.attempts, job.lost_leases) == ("queued", 0, 0)


def test_a_restart_frees_every_running_job(store: World, asked: str) -> None:
    must_claim(asked)
    with transaction() as session:
        assert jobs.free_all(session) == 1
    assert job_of(store, asked).status == "queued"
