"""What is true after an unlearn job ended."""

from __future__ import annotations

import pytest
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError

from app.store import jobs, models, requests, tables, trash
from app.store.session import reading, transaction
from tests import factories
from tests.store.conftest import World


def _claimed(store: World, model_id: str, **over: object) -> tuple[jobs.Claim, str]:
    with transaction() as session:
        request = factories.a_request(session, store.tenant, model_id, **over)
    with transaction() as session:
        claim = jobs.claim(session, request.job_id, "w")
    assert claim is not None
    return claim, request.id


def _model(store: World) -> tables.Model:
    with transaction() as session:
        return factories.a_model(session, store.tenant)


def test_publishing_replaces_the_parent(store: World) -> None:
    model = _model(store)
    claim, request_id = _claimed(store, model.id)
    with transaction() as session:
        made = factories.publish(session, claim)
    assert made is not None
    with reading() as session:
        parent, child = models.versions(session, store.tenant, model.id)
        serving = models.version(session, store.tenant, model.id, "@serving")
        request = requests.get(session, store.tenant, request_id)
        thrown = trash.pending(session)
    assert (parent.status, parent.importance_blob) == ("withdrawn", None)
    assert parent.withdrawn_at is not None
    assert parent.blob is not None
    assert (child.number, child.parent_id, child.status) == (2, parent.id, "ready")
    assert serving.id == child.id == made.id
    assert (request.status, request.outcome) == ("completed", "erased_exact")
    assert request.applied_version_id == child.id
    assert request.completed_at is not None
    assert any(key.endswith("importance.safetensors") for key in thrown)


def test_what_stored_importance_is_goes_with_it(store: World) -> None:
    stored = {"estimator": "fisher_persample", "num_records": 3, "stale": 0}
    left = {**stored, "num_records": 2, "stale": 1}
    with transaction() as session:
        model, _, job_id = factories.a_raw_model(session, store.tenant)
        factories.prepare(session, job_id, "t/importance", importance=stored)
    claim, _ = _claimed(store, model.id)
    assert claim.version is not None
    assert claim.version.importance == stored
    with transaction() as session:
        factories.publish(session, claim, importance_blob="t/left", importance=left)
    with reading() as session:
        parent, child = models.versions(session, store.tenant, model.id)
    assert (parent.importance, child.importance) == (None, left)
    with transaction() as session:
        models.delete(session, store.tenant, model.id)
    with reading() as session:
        assert models.versions(session, store.tenant, model.id)[1].importance is None


def test_the_job_tells_what_came_out(store: World) -> None:
    claim, _ = _claimed(store, _model(store).id)
    with transaction() as session:
        version = factories.publish(session, claim, reason="gates hold", cost={"seconds": 1})
    assert version is not None
    with reading() as session:
        job = jobs.get(session, store.tenant, claim.job.id)
        bodies = jobs.rungs(session, store.tenant, claim.job.id)
    assert (job.status, job.progress, job.lease_until) == ("succeeded", 1.0, None)
    assert job.result == {
        "outcome": "erased_exact",
        "version": version.id,
        "version_number": 2,
        "published": 0,
        "reason": "gates hold",
        "cost": {"seconds": 1},
    }
    assert [body["status"] for body in bodies] == ["published"]


def test_a_prepare_of_the_child_follows(store: World) -> None:
    model = _model(store)
    claim, _ = _claimed(store, model.id)
    with transaction() as session:
        factories.publish(session, claim)
    with transaction() as session:
        (job_id,) = jobs.due(session)
        factories.prepare(session, job_id, "t/jobs/j/e1/importance.safetensors")
        child = models.version(session, store.tenant, model.id, 2)
        assert models.baseline(session, store.tenant, child.id) == [{"audit": "x"}]
        assert child.importance_blob is not None
        assert child.status == "ready"


def test_a_child_that_cannot_be_measured_stays_in_force(store: World) -> None:
    model = _model(store)
    claim, request_id = _claimed(store, model.id)
    with transaction() as session:
        made = factories.publish(session, claim)
        assert made is not None
    with transaction() as session:
        held = jobs.claim(session, jobs.due(session)[0], "w")
        assert held is not None
        jobs.fail(session, held, "out_of_memory", "-", False)
    with reading() as session:
        child = models.version(session, store.tenant, model.id, "@serving")
        assert (child.id, child.status, child.rejection) == (made.id, "ready", None)
        assert child.blob == made.blob is not None
        assert requests.get(session, store.tenant, request_id).status == "completed"


def test_nothing_is_published_on_what_was_withdrawn(store: World) -> None:
    claim, request_id = _claimed(store, _model(store).id)
    with transaction() as session:
        session.execute(update(tables.Version).values(status="withdrawn"))
    with pytest.raises(jobs.LeaseLost), transaction() as session:
        factories.publish(session, claim)
    with reading() as session:
        assert requests.get(session, store.tenant, request_id).status == "processing"
        assert jobs.get(session, store.tenant, claim.job.id).status == "running"


def test_a_waiting_audit_outlives_its_version(store: World) -> None:
    model = _model(store)
    with transaction() as session:
        factories.published(session, store.tenant, model.id)
        audit = factories.an_audit(session, store.tenant, model.id)
        factories.published(session, store.tenant, model.id, record_ids=["r1"])
    with transaction() as session:
        assert jobs.get(session, store.tenant, audit.id).status == "queued"
        assert jobs.claim(session, audit.id, "w") is not None


def test_a_stale_prepare_is_dropped(store: World) -> None:
    model = _model(store)
    for record in ("r0", "r1"):
        claim, _ = _claimed(store, model.id, record_ids=[record])
        with transaction() as session:
            factories.publish(session, claim)
    with reading() as session:
        chosen = select(tables.Job.status, tables.Version.number).join(
            tables.Version, tables.Version.id == tables.Job.version_id
        )
        found = session.execute(chosen.where(tables.Job.kind == "prepare")).all()
    assert sorted(map(tuple, found)) == [("cancelled", 2), ("queued", 3), ("succeeded", 1)]


def test_an_exhausted_ladder_leaves_the_model_and_keeps_the_rungs(store: World) -> None:
    model = _model(store)
    claim, request_id = _claimed(store, model.id)
    with transaction() as session:
        rung = {"index": 0, "status": "refused"}
        jobs.exhaust(session, claim, code="ladder_exhausted", detail="no rung", rungs=[rung])
    with reading() as session:
        job = jobs.get(session, store.tenant, claim.job.id)
        request = requests.get(session, store.tenant, request_id)
        (version,) = models.versions(session, store.tenant, model.id)
        assert jobs.rungs(session, store.tenant, job.id) == [rung]
        assert [*models.excluded_rows(session, store.tenant, model.id)] == []
    assert (job.status, version.status) == ("failed", "ready")
    assert job.error == {"code": "ladder_exhausted", "detail": "no rung"} == request.problem
    assert job.result is not None
    assert job.result["outcome"] == "not_erased"
    assert (request.status, request.outcome) == ("needs_attention", "not_erased")


def test_what_is_forgotten_stays_excluded(store: World) -> None:
    model = _model(store)
    claim, _ = _claimed(store, model.id, record_ids=["r4", "r2"])
    with transaction() as session:
        factories.publish(session, claim)
    later, _ = _claimed(store, model.id, record_ids=["r2", "r5"])
    assert [*later.excluded] == [2, 4]
    assert [[*rows] for rows in later.requests.values()] == [[5]]


def test_requests_overtaken_by_others_owe_nothing(store: World) -> None:
    """Two queued jobs name r0: the second finds it forgotten."""
    model = _model(store)
    with transaction() as session:
        for options in ({"seed": 1}, {"seed": 2}):
            factories.a_request(session, store.tenant, model.id, options=options)
        first, second = jobs_of(session, model.id)
    with transaction() as session:
        claim = jobs.claim(session, first, "w")
        assert claim is not None
        factories.publish(session, claim)
    with transaction() as session:
        claim = jobs.claim(session, second, "w")
        assert claim is not None
        assert claim.nothing_left
        jobs.finish_without_influence(session, claim)
        job = jobs.get(session, store.tenant, second)
        request = requests.get(session, store.tenant, next(iter(claim.requests)))
    assert job.result is not None
    assert (job.status, job.result["outcome"]) == ("succeeded", "no_influence")
    assert job.result["version_number"] == 2
    assert (request.status, request.outcome) == ("completed", "no_influence")
    assert request.counts["num_already_applied"] == 1


def test_a_request_overtaken_in_part_forgets_the_rest(store: World) -> None:
    model = _model(store)
    with transaction() as session:
        factories.a_request(session, store.tenant, model.id)
        later = factories.a_request(
            session, store.tenant, model.id, record_ids=["r0", "r1", "r2"], policy="fast"
        )
        first, second = jobs_of(session, model.id)
    with transaction() as session:
        claim = jobs.claim(session, first, "w")
        assert claim is not None
        factories.publish(session, claim)
    with transaction() as session:
        claim = jobs.claim(session, second, "w")
        assert claim is not None
    assert claim.requests[later.id].tolist() == [1, 2]
    with reading() as session:
        counts = requests.get(session, store.tenant, later.id).counts
    assert (counts["num_records"], counts["num_already_applied"]) == (2, 1)


def test_in_a_shared_job_only_the_overtaken_request_owes_nothing(store: World) -> None:
    model = _model(store)
    with transaction() as session:
        factories.a_request(session, store.tenant, model.id, options={"seed": 1})
        over = factories.a_request(session, store.tenant, model.id)
        own = factories.a_request(session, store.tenant, model.id, record_ids=["r1"])
        first, second = jobs_of(session, model.id)
    for job_id in (first, second):
        with transaction() as session:
            claim = jobs.claim(session, job_id, "w")
            assert claim is not None
            assert not claim.nothing_left
            factories.publish(session, claim)
    with reading() as session:
        outcomes = [requests.get(session, store.tenant, each.id).outcome for each in (over, own)]
        applied = requests.get(session, store.tenant, over.id).applied_version_id
    assert outcomes == ["no_influence", "erased_exact"]
    assert applied is None


def test_versions_form_one_chain(store: World) -> None:
    model = _model(store)
    claim, _ = _claimed(store, model.id)
    with transaction() as session:
        child = factories.publish(session, claim)
    assert child is not None
    assert claim.version is not None
    wrong = {
        "a second child of one parent": {"number": 3, "parent_id": claim.version.id},
        "a number twice": {"number": 2, "parent_id": child.id},
        "a root that is not first": {"number": 3, "parent_id": None},
        "a second version of one job": {"number": 3, "parent_id": child.id, "job_id": claim.job.id},
    }
    for fields in wrong.values():
        with pytest.raises(IntegrityError), transaction() as session:
            session.add(_version(store.tenant, model.id, **fields))


def test_a_parent_of_another_model_is_refused(store: World) -> None:
    one, other = _model(store), _model(store)
    child = _version(store.tenant, other.id, number=2, parent_id=one.current_version_id)
    with pytest.raises(IntegrityError), transaction() as session:
        session.add(child)


def test_a_reference_across_tenants_is_refused(store: World) -> None:
    model = _model(store)
    with pytest.raises(IntegrityError), transaction() as session:
        session.add(_version(store.stranger, model.id, number=1, parent_id=None))
    job = tables.Job(tenant_id=store.stranger, id="job_x", kind="prepare", model_id=model.id)
    with pytest.raises(IntegrityError), transaction() as session:
        session.add(job)


def _version(tenant_id: str, model_id: str, **fields: object) -> tables.Version:
    wanted = {"digest": factories.DIGEST, "size_bytes": 1} | fields
    return tables.Version(tenant_id=tenant_id, id="ver_x", model_id=model_id, **wanted)


def jobs_of(session: object, model_id: str) -> list[str]:
    chosen = select(tables.Job.id).where(
        tables.Job.model_id == model_id, tables.Job.kind == "unlearn"
    )
    return [*session.scalars(chosen.order_by(tables.Job.id))]  # type: ignore[attr-defined]
