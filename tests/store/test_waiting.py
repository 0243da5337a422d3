"""Two open transactions: the second waits for the first, and then goes by what is true by then."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy.orm import Session

from app.store import admission, endings, jobs, keys, models, requests, samples, tables
from app.store import session as sessions
from app.store.errors import Conflict
from app.store.session import reading, transaction
from tests import factories
from tests.store.conftest import World
from tests.store.test_samples import a_model, ask, some_samples

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.parametrize("store", ["postgres"], indirect=True),
]


@contextmanager
def both(
    first: Callable[[Session], object], second: Callable[[Session], object]
) -> Iterator[tuple[Session, list[Exception]]]:
    """Open a transaction with ``first`` while ``second`` begins in another; commit at the end."""
    errors: list[Exception] = []

    def run() -> None:
        try:
            with transaction() as session:
                second(session)
        except Exception as error:  # noqa: BLE001  # looked at by the test
            errors.append(error)

    thread = threading.Thread(target=run)
    with transaction() as session:
        first(session)
        thread.start()
        thread.join(0.5)
        yield session, errors
    thread.join(30)
    assert not thread.is_alive()


def test_a_model_is_deleted_while_a_request_with_its_records_comes(store: World) -> None:
    tenant = store.tenant
    model_id, sent = a_model(store), some_samples(store)
    ask(store, model_id, sent)
    with both(
        lambda session: samples.get(session, tenant, sent),
        lambda session: models.delete(session, tenant, model_id),
    ) as (session, errors):
        admission.usable(session, tenant, model_id)
    assert errors == []
    with reading() as session:
        assert models.get(session, tenant, model_id).status == "deleted"
        assert session.get_one(tables.Dataset, (tenant, sent)).status == "deleted"


def test_a_claim_waits_for_whoever_has_the_model(store: World) -> None:
    tenant = store.tenant
    with transaction() as session:
        rows = factories.index()
        train, other = (factories.a_dataset(session, tenant, rows) for _ in range(2))
        model, version, job_id = factories.a_raw_model(
            session, tenant, dataset_id=train.id, holdout_dataset_id=train.id
        )
        model.holdout_dataset_id = other.id  # of the same records, so that its job is refused

    def hold(session: Session) -> None:
        for table, row_id in ((tables.Model, model.id), (tables.Version, version.id)):
            session.get_one(table, (tenant, row_id), with_for_update=True)

    with both(hold, lambda session: jobs.claim(session, job_id, "w")) as (session, errors):
        endings.stop_jobs(session, tables.Job.id == job_id)
    assert errors == []
    with reading() as session:
        assert jobs.get(session, tenant, job_id).status == "cancelled"


def test_a_request_is_taken_back_while_its_job_is_tried_again(store: World) -> None:
    tenant = store.tenant
    with transaction() as session:
        model = factories.a_model(session, tenant)
        request = factories.a_request(session, tenant, model.id)
        claim = jobs.claim(session, request.job_id, "w")
        assert claim is not None
        jobs.fail(session, claim, "bad", "-", retryable=False)
    with both(
        lambda session: jobs.retry(session, tenant, request.job_id),
        lambda session: requests.cancel(session, tenant, request.id),
    ) as (_, errors):
        pass
    assert errors == []
    with reading() as session:
        found = requests.get(session, tenant, request.id)
        assert found.status == "cancelled"
        assert found.job_id != request.job_id
        assert jobs.get(session, tenant, found.job_id).status == "cancelled"


def test_of_the_last_two_admin_keys_one_stays(store: World) -> None:
    tenant, scopes = store.tenant, ["keys:manage"]
    with transaction() as session:
        first, second = (keys.create(session, tenant, name, scopes, None)[0] for name in "ab")
    with both(
        lambda session: keys.revoke(session, tenant, first.id),
        lambda session: keys.revoke(session, tenant, second.id),
    ) as (_, errors):
        pass
    assert [type(error) for error in errors] == [Conflict]


def test_two_models_do_not_both_take_the_last_room(store: World) -> None:
    sessions.configure(store.settings.model_copy(update={"max_tenant_parameters": 15}))
    with transaction() as session:
        dataset_id = factories.a_dataset(session, store.tenant).id

    def register(session: Session) -> None:
        factories.a_raw_model(session, store.tenant, dataset_id=dataset_id, num_parameters=10)

    with both(register, register) as (_, errors):
        pass
    assert [getattr(error, "code", error) for error in errors] == ["quota_model_too_large"]


def test_two_datasets_do_not_both_take_the_last_room(store: World) -> None:
    sessions.configure(store.settings.model_copy(update={"max_tenant_bytes": 15}))

    def register(session: Session) -> None:
        factories.a_raw_dataset(session, store.tenant, size_bytes=10)

    with both(register, register) as (_, errors):
        pass
    assert [getattr(error, "code", error) for error in errors] == ["quota_exceeded"]
