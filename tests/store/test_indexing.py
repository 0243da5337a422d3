"""The index of a dataset: written in pieces, gone again if the dataset does not become ready."""

from __future__ import annotations

from functools import partial
from itertools import count
from typing import Any

import pytest
from sqlalchemy import func, select, update

from app.store import clock, datasets, erasing, jobs, tables
from app.store.errors import Unacceptable
from app.store.session import reading, transaction
from tests import factories
from tests.store.conftest import World

ROWS = factories.index()


def begun(world: World) -> jobs.Claim:
    """A claimed ingest job, whose first four records are indexed."""
    with transaction() as session:
        _, job_id = factories.a_raw_dataset(session, world.tenant)
        return half_indexed(session, job_id)


def half_indexed(session: Any, job_id: str) -> jobs.Claim:
    claim = jobs.claim(session, job_id, "reader")
    assert claim is not None
    assert jobs.add_to_index(session, claim, 0, ROWS[:4])
    return claim


def again(claim: jobs.Claim) -> jobs.Claim:
    """The claim of the next attempt, once this one's lease has run out."""
    with transaction() as session:
        session.execute(update(tables.Job).values(lease_until=clock.now() - 1))
    with transaction() as session:
        jobs.sweep(session)
        found = jobs.claim(session, claim.job.id, "second")
    assert found is not None
    return found


def num_records() -> int:
    with reading() as session:
        return session.scalar(select(func.count()).select_from(tables.Record)) or 0


def drop_indexes() -> int:
    """What the cleaner of a worker does; return how many pieces there were."""
    for pieces in count():
        with transaction() as session:
            if not erasing.drop_index(session):
                return pieces
    raise AssertionError


def test_pieces_make_up_the_index(store: World) -> None:
    claim = begun(store)
    result = {"num_train": 10, "num_holdout": 4, "num_classes": 2, "modality": "features"}
    with transaction() as session:
        assert jobs.add_to_index(session, claim, 4, ROWS[4:])
    with transaction() as session:
        jobs.finish_ingest(session, claim, result=result, blob="t/x")
        dataset_id = claim.job.dataset_id or ""
        ids = [row[0] for row in ROWS]
        found = datasets.rows_of_ids(session, store.tenant, dataset_id, ids)
    assert (found.rows.tolist(), found.num_holdout, found.num_missing) == ([*range(10)], 4, 0)


def test_a_piece_whose_commit_was_not_heard_of_is_written_again(store: World) -> None:
    claim = begun(store)
    for _ in range(2):
        with transaction() as session:
            assert jobs.add_to_index(session, claim, 4, ROWS[4:])
    assert num_records() == len(ROWS)


def test_what_a_dead_attempt_indexed_is_cleared(
    store: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.store.jobs.indexing.CHUNK", 3)
    claim = again(begun(store))
    left = []
    while True:
        with transaction() as session:
            more = jobs.clear_index(session, claim)
        left.append(num_records())
        if not more:
            break
    assert left == [1, 0, 0]


@pytest.mark.parametrize(
    "verb", [jobs.clear_index, partial(jobs.add_to_index, start=4, index=ROWS[4:])]
)
def test_an_attempt_that_lost_its_lease_changes_nothing(store: World, verb: Any) -> None:
    claim = begun(store)
    again(claim)
    with pytest.raises(jobs.LeaseLost), transaction() as session:
        verb(session, claim)
    assert num_records() == 4


@pytest.mark.parametrize("how", ["delete", "cancel"])
def test_a_dataset_that_nobody_wants_any_more_leaves_no_records(store: World, how: str) -> None:
    claim = begun(store)
    with transaction() as session:
        if how == "delete":
            datasets.delete(session, store.tenant, claim.job.dataset_id or "")
        else:
            jobs.cancel(session, store.tenant, claim.job.id)
    with transaction() as session:
        assert not jobs.add_to_index(session, claim, 4, ROWS[4:])
        jobs.cancelled(session, claim)
    drop_indexes()
    assert num_records() == 0


def test_a_rejected_dataset_leaves_no_records(store: World) -> None:
    claim = begun(store)
    with transaction() as session:
        assert jobs.fail(session, claim, "dataset_empty", "", retryable=False) == "failed"
    drop_indexes()
    assert num_records() == 0


def test_an_index_goes_in_pieces_and_no_other_with_it(
    store: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erasing, "CHUNK", 4)
    with transaction() as session:
        kept = factories.a_dataset(session, store.tenant, ROWS).id
        gone = factories.a_dataset(session, store.tenant, ROWS).id
    assert drop_indexes() == 0
    with transaction() as session:
        datasets.delete(session, store.tenant, gone)
    assert num_records() == 2 * len(ROWS), "a long list is not removed in the caller's transaction"
    assert drop_indexes() == 4
    with reading() as session:
        left = session.scalars(select(tables.Record.dataset_id)).all()
    assert left == [kept] * len(ROWS)


def test_the_index_of_a_holdout_that_is_being_read_is_not_asked(store: World) -> None:
    with transaction() as session:
        train = factories.a_dataset(session, store.tenant, [["t", 0, "train", None]])
        holdout, job_id = factories.a_raw_dataset(session, store.tenant)
        model, _, _ = factories.a_raw_model(
            session, store.tenant, dataset_id=train.id, holdout_dataset_id=holdout.id
        )
        half_indexed(session, job_id)
    with pytest.raises(Unacceptable) as caught, transaction() as session:
        factories.a_request(session, store.tenant, model.id)
    assert caught.value.code == "records_not_found"
