"""What an audit looks for, what it can count on, and what becomes of its findings."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from app.store import audits, jobs, models, requests, tables, trash
from app.store.errors import Conflict, Gone, NotFound, Unacceptable
from app.store.session import reading, transaction
from tests import factories
from tests.store.conftest import World


def _model(store: World, **over: object) -> str:
    with transaction() as session:
        return factories.a_model(session, store.tenant, **over).id


def _forget(store: World, model_id: str, *records: str) -> tuple[str, str]:
    """Publish a version without these records; return its id and the request's."""
    with transaction() as session:
        version = factories.published(session, store.tenant, model_id, record_ids=[*records])
        chosen = select(tables.Request.id).where(tables.Request.applied_version_id == version.id)
        return version.id, session.scalars(chosen).one()


def _claimed(store: World, model_id: str, ref: str = "@serving", **over: object) -> jobs.Claim:
    with transaction() as session:
        job = factories.an_audit(session, store.tenant, model_id, ref, **over)
    with transaction() as session:
        claim = jobs.claim(session, job.id, "w")
    assert claim is not None
    assert claim.subject is not None
    return claim


def _code(store: World, model_id: str, ref: str = "1", request: str | None = None) -> str:
    with pytest.raises(Unacceptable) as caught, transaction() as session:
        audits.occasion(session, store.tenant, model_id, ref, request)
    return caught.value.code


def test_all_that_a_version_has_forgotten_is_looked_for(store: World) -> None:
    model_id = _model(store)
    _forget(store, model_id, "r0")
    _forget(store, model_id, "r3", "r4")
    _forget(store, model_id, "r5")
    claim = _claimed(store, model_id, "3")
    assert claim.subject is not None
    assert [*claim.subject.rows] == [0, 3, 4]
    assert [*claim.excluded] == [5], "what was forgotten later takes no part"
    assert claim.subject.before is not None
    assert claim.subject.before.number == 1, "the last version that knew all of them"
    assert (claim.selector, claim.version is not None) == ("records", True)


def test_one_request_is_looked_for_in_the_version_before_it(store: World) -> None:
    model_id = _model(store)
    _forget(store, model_id, "r0")
    _, request_id = _forget(store, model_id, "r3", "r4")
    claim = _claimed(store, model_id, request=request_id)
    assert claim.subject is not None
    assert [*claim.subject.rows] == [3, 4]
    assert [*claim.excluded] == [0]
    assert claim.subject.before is not None
    assert claim.subject.before.number == 2


def test_a_waiting_request_is_looked_for_in_what_still_knows_it(store: World) -> None:
    model_id = _model(store)
    with transaction() as session:
        request = factories.a_request(session, store.tenant, model_id, record_ids=["r1", "r2"])
        job = factories.an_audit(session, store.tenant, model_id, "1", request=request.id)
    with transaction() as session:
        factories.a_request(session, store.tenant, model_id, record_ids=["r2"], options={"seed": 9})
        claim = jobs.claim(session, job.id, "w")
    assert claim is not None
    assert claim.subject is not None
    assert [*claim.subject.rows] == [1, 2]
    assert claim.subject.before is None
    assert not claim.subject.is_forgotten


def test_a_class_is_a_class_only_if_all_requests_name_classes(store: World) -> None:
    model_id = _model(store)
    with transaction() as session:
        factories.published(session, store.tenant, model_id, selector="class", class_index=1)
    claim = _claimed(store, model_id)
    assert (claim.selector, claim.forget_classes) == ("class", (1,))
    with transaction() as session:
        jobs.finish_audit(session, claim, findings=[])
    _forget(store, model_id, "r0")
    assert _claimed(store, model_id).selector == "records"


def test_before_is_nobody_once_its_weights_are_gone(store: World) -> None:
    model_id = _model(store)
    _forget(store, model_id, "r0")
    with transaction() as session:
        first = models.version(session, store.tenant, model_id, 1)
        trash.throw(session, first.blob)
        first.blob = None
    subject = _claimed(store, model_id).subject
    assert subject is not None
    assert subject.before is None


@pytest.mark.parametrize("has_recipe", [True, False])
def test_what_an_audit_can_count_on(store: World, has_recipe: bool) -> None:
    over = {} if has_recipe else {"recipe": None, "holdout_dataset_id": None}
    model_id = _model(store, **over)
    with transaction() as session:
        request = (
            factories.a_request(session, store.tenant, model_id, policy="fast")
            if (has_recipe)
            else _stored_request(session, store, model_id)
        )
        found = audits.occasion(session, store.tenant, model_id, "1", request.id)
    assert found.has == ({"retain", "recipe", "holdout", "tuning"} if has_recipe else {"retain"})


def _stored_request(session, store, model_id):  # type: ignore[no-untyped-def]
    """A request for r0 that nothing can serve any more."""
    job = tables.Job(
        tenant_id=store.tenant, id="job_x", kind="unlearn", model_id=model_id, status="failed"
    )
    session.add(job)
    session.flush()
    request = tables.Request(
        tenant_id=store.tenant,
        id="req_x",
        model_id=model_id,
        job_id=job.id,
        status="needs_attention",
        selector="record_ids",
        rows=[0],
        policy="standard",
        received_at=job.created_at,
        due_at=job.created_at,
    )
    session.add(request)
    session.flush()
    return request


def test_oracles_count_only_for_what_they_never_saw(store: World) -> None:
    model_id = _model(store)
    _, request_id = _forget(store, model_id, "r0")
    with transaction() as session:
        oracle = factories.an_oracle(session, store.tenant, model_id)
        waiting = factories.a_request(session, store.tenant, model_id, record_ids=["r7"])
        wanted = {None: True, request_id: True, waiting.id: False}
        for request, counts in wanted.items():
            found = audits.occasion(session, store.tenant, model_id, "2", request)
            assert ("oracle" in found.has) is counts
    claim = _claimed(store, model_id, request=request_id)
    assert [each.id for each in claim.oracles] == [oracle.id]
    with transaction() as session:
        jobs.release(session, claim)
    assert _claimed(store, model_id, request=waiting.id).oracles == ()


def test_reference_models_count_for_what_they_know(store: World) -> None:
    model_id = _model(store)
    _, request_id = _forget(store, model_id, "r0")
    with transaction() as session:
        factories.a_bank(session, store.tenant, model_id)
        waiting = factories.a_request(session, store.tenant, model_id, record_ids=["r7"])
        for request, counts in {None: False, request_id: False, waiting.id: True}.items():
            found = audits.occasion(session, store.tenant, model_id, "2", request)
            assert ("references" in found.has) is counts


def test_nothing_to_look_for_is_refused(store: World) -> None:
    model_id = _model(store)
    assert _code(store, model_id) == "forget_set_empty"
    with transaction() as session:
        request = factories.a_request(session, store.tenant, model_id, record_ids=["r10"])
    assert request.outcome == "no_influence"
    assert _code(store, model_id, request=request.id) == "forget_set_empty"


def test_a_request_of_another_model_is_refused(store: World) -> None:
    model_id, other = _model(store), _model(store)
    with transaction() as session:
        request = factories.a_request(session, store.tenant, other)
    assert _code(store, model_id, request=request.id) == "request_of_another_model"
    with pytest.raises(NotFound), transaction() as session:
        audits.occasion(session, store.stranger, other, "1", request.id)


def test_erased_weights_and_deleted_models_are_refused(store: World) -> None:
    model_id = _model(store)
    _forget(store, model_id, "r0")
    with transaction() as session:
        first = models.version(session, store.tenant, model_id, 1)
        first.blob = None
    with pytest.raises(Gone), transaction() as session:
        audits.occasion(session, store.tenant, model_id, "1", None)
    with transaction() as session:
        job = factories.an_audit(session, store.tenant, model_id)
        models.delete(session, store.tenant, model_id)
        assert jobs.get(session, store.tenant, job.id).status == "cancelled"
    with pytest.raises(Conflict), transaction() as session:
        audits.occasion(session, store.tenant, model_id, "2", None)


def test_findings_are_kept(store: World) -> None:
    model_id = _model(store)
    version_id, request_id = _forget(store, model_id, "r0")
    claim = _claimed(store, model_id, request=request_id)
    with transaction() as session:
        jobs.finish_audit(session, claim, findings=[{"audit": "sanity"}])
    with reading() as session:
        job = jobs.get(session, store.tenant, claim.job.id)
        report = audits.of_job(session, store.tenant, job.id)
        version = models.version(session, store.tenant, model_id, 2)
        assert [*session.scalars(audits.of_version(version))] == [report]
    assert (job.status, job.result) == (
        "succeeded",
        {"version": version_id, "version_number": 2},
    )
    assert report is not None
    assert (report.request_id, report.findings) == (request_id, [{"audit": "sanity"}])
    assert report.options == {
        "audits": [{"name": "sanity"}],
        "seed": 0,
        "batch_size": 256,
        "time_limit_seconds": 600.0,
    }


def test_who_lost_the_lease_keeps_nothing(store: World) -> None:
    model_id = _model(store)
    _forget(store, model_id, "r0")
    claim = _claimed(store, model_id)
    with transaction() as session:
        jobs.free_all(session)
    with pytest.raises(jobs.LeaseLost), transaction() as session:
        jobs.finish_audit(session, claim, findings=[])
    with reading() as session:
        assert session.scalars(select(tables.AuditReport)).all() == []


def test_a_failed_audit_leaves_requests_and_versions_alone(store: World) -> None:
    model_id = _model(store)
    with transaction() as session:
        request = factories.a_request(session, store.tenant, model_id)
    claim = _claimed(store, model_id, "1", request=request.id)
    with transaction() as session:
        jobs.fail(session, claim, "out_of_memory", "-", False)
    with reading() as session:
        assert requests.get(session, store.tenant, request.id).status == "queued"
        assert models.version(session, store.tenant, model_id, 1).status == "ready"


def test_erasure_goes_first_and_one_job_runs_at_a_time(store: World) -> None:
    model_id = _model(store)
    _forget(store, model_id, "r0")
    with transaction() as session:
        prepare = jobs.due(session)[0]
        factories.prepare(session, prepare)
        audit = factories.an_audit(session, store.tenant, model_id)
        request = factories.a_request(session, store.tenant, model_id, record_ids=["r1"])
        assert jobs.due(session) == [request.job_id]
        assert jobs.claim(session, request.job_id, "w") is not None
        assert jobs.claim(session, audit.id, "w2") is None
        assert factories.waiting_on(session, audit) == "model_lock"


def test_an_audit_waits_for_a_version_that_is_checked(store: World) -> None:
    with transaction() as session:
        model, _, prepare = factories.a_raw_model(session, store.tenant)
        request = factories.a_request(session, store.tenant, model.id)
        audit = factories.an_audit(session, store.tenant, model.id, "1", request=request.id)
        assert factories.waiting_on(session, audit) == "model"
        claim = jobs.claim(session, prepare, "w")
        assert claim is not None
        jobs.fail(session, claim, "model_non_finite", "-", False)
        assert jobs.get(session, store.tenant, audit.id).status == "failed"
    with reading() as session:
        error = jobs.get(session, store.tenant, audit.id).error
    assert error is not None
    assert error["code"] == "upload_rejected"
