"""Oracles beside the chain, and banks: made once, and gone with the records they saw."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from app.store import jobs, models, references, tables, trash
from app.store.errors import Conflict, Gone, NotFound, ServiceError, Unacceptable
from app.store.session import reading, transaction
from tests import factories
from tests.store.conftest import World

OPTIONS = {"seed": 0, "time_limit_seconds": 600.0}
BANK = {"models": 4, "seed": 0, "batch_size": 256}


@pytest.fixture
def model_id(store: World) -> str:
    """A model that has forgotten one record."""
    with transaction() as session:
        model = factories.a_model(session, store.tenant)
        factories.published(session, store.tenant, model.id)
    return model.id


def _code(store: World, model_id: str, ref: str, kind: type[ServiceError]) -> str:
    with pytest.raises(kind) as caught, transaction() as session:
        references.queue_oracle(session, store.tenant, model_id, ref, OPTIONS)
    return caught.value.code


def test_oracles_stand_beside_the_chain(store: World, model_id: str) -> None:
    with transaction() as session:
        made = [factories.an_oracle(session, store.tenant, model_id, seed) for seed in (1, 2)]
    with reading() as session:
        model = models.get(session, store.tenant, model_id)
        serving = models.version(session, store.tenant, model_id, "@serving")
        latest = models.version(session, store.tenant, model_id, "@latest")
        chain = models.versions(session, store.tenant, model_id)
        known = references.oracles(session, serving)
        by_id = models.version(session, store.tenant, model_id, made[0].id)
    assert [version.number for version in chain] == [1, 2]
    assert model.current_version_id == serving.id == latest.id == chain[1].id
    assert [oracle.id for oracle in known] == [oracle.id for oracle in made]
    assert (by_id.role, by_id.number, by_id.status) == ("oracle", None, "ready")
    assert by_id.oracle_of_id == serving.id


def test_the_next_version_follows_the_chain(store: World, model_id: str) -> None:
    with transaction() as session:
        factories.an_oracle(session, store.tenant, model_id)
        third = factories.published(session, store.tenant, model_id, record_ids=["r1"])
    assert third.number == 3


def test_an_oracle_is_trained_without_all_that_was_forgotten(store: World, model_id: str) -> None:
    with transaction() as session:
        factories.published(session, store.tenant, model_id, record_ids=["r3"])
        job = references.queue_oracle(session, store.tenant, model_id, "3", OPTIONS)
        claim = jobs.claim(session, job.id, "w")
    assert claim is not None
    assert [*claim.excluded] == [0, 3]


def test_what_saw_forgotten_records_goes_with_them(store: World, model_id: str) -> None:
    with transaction() as session:
        oracle = factories.an_oracle(session, store.tenant, model_id)
        bank = factories.a_bank(session, store.tenant, model_id)
        waiting = references.queue_oracle(session, store.tenant, model_id, "2", OPTIONS)
        assert {oracle.blob, bank} <= trash.named(session)
        kept = oracle.blob
        factories.published(session, store.tenant, model_id, record_ids=["r1"])
    with reading() as session:
        model = models.get(session, store.tenant, model_id)
        gone = models.version(session, store.tenant, model_id, oracle.id)
        job = jobs.get(session, store.tenant, waiting.id)
        thrown = trash.pending(session)
    assert (model.bank_blob, model.bank_models) == (None, None)
    assert (gone.status, gone.blob) == ("withdrawn", None)
    assert gone.withdrawn_at is not None
    assert (job.status, job.error) == (
        "cancelled",
        {
            "code": "version_withdrawn",
            "detail": "The version was replaced before its oracle was trained.",
        },
    )
    assert {kept, bank} <= {*thrown}


def test_only_the_version_in_force_gets_oracles(store: World, model_id: str) -> None:
    assert _code(store, model_id, "1", Gone) == "version_withdrawn"
    with transaction() as session:
        oracle = factories.an_oracle(session, store.tenant, model_id)
    assert _code(store, model_id, oracle.id, Unacceptable) == "version_not_in_chain"


def test_what_an_oracle_needs(store: World) -> None:
    with transaction() as session:
        raw, _, _ = factories.a_raw_model(session, store.tenant)
        fresh = factories.a_model(session, store.tenant)
        bare = factories.a_model(session, store.tenant, recipe=None)
    assert _code(store, raw.id, "1", Conflict) == "version_not_ready"
    assert _code(store, fresh.id, "1", Unacceptable) == "forget_set_empty"
    assert _code(store, bare.id, "1", Unacceptable) == "recipe_missing"
    with pytest.raises(NotFound), transaction() as session:
        references.queue_oracle(session, store.stranger, fresh.id, "1", OPTIONS)


def test_a_bank_is_made_once(store: World, model_id: str) -> None:
    with transaction() as session:
        job = references.queue_bank(session, store.tenant, model_id, BANK)
    with pytest.raises(Conflict, match="being trained") as caught, transaction() as session:
        references.queue_bank(session, store.tenant, model_id, BANK)
    assert caught.value.extra == {"job": job.id}
    with transaction() as session:
        claim = jobs.claim(session, job.id, "w")
        assert claim is not None
        assert claim.version is None
        assert [*claim.excluded] == [0]
        jobs.finish_bank(session, claim, blob="t/bank", num_models=4)
        model = models.get(session, store.tenant, model_id)
        assert (model.bank_blob, model.bank_models) == ("t/bank", 4)
    with pytest.raises(Conflict) as caught, transaction() as session:
        references.queue_bank(session, store.tenant, model_id, BANK)
    assert caught.value.code == "reference_bank_exists"


@pytest.mark.parametrize("missing", ["recipe", "holdout"])
def test_a_bank_needs_recipe_and_holdout(store: World, missing: str) -> None:
    field = {"recipe": "recipe", "holdout": "holdout_dataset_id"}[missing]
    with transaction() as session:
        bare = factories.a_model(session, store.tenant, **{field: None})
    with pytest.raises(Unacceptable) as caught, transaction() as session:
        references.queue_bank(session, store.tenant, bare.id, BANK)
    assert caught.value.code == f"{missing}_missing"


def test_a_deleted_model_keeps_neither(store: World, model_id: str) -> None:
    with transaction() as session:
        oracle = factories.an_oracle(session, store.tenant, model_id)
        bank = factories.a_bank(session, store.tenant, model_id)
        blob = oracle.blob
        models.delete(session, store.tenant, model_id)
    with reading() as session:
        assert models.get(session, store.tenant, model_id).bank_blob is None
        assert models.version(session, store.tenant, model_id, oracle.id).blob is None
        assert {blob, bank} <= {*trash.pending(session)}


@pytest.mark.parametrize("kind", ["oracle", "bank"])
def test_the_work_of_a_deleted_model_is_thrown_away(store: World, model_id: str, kind: str) -> None:
    with transaction() as session:
        if kind == "oracle":
            job = references.queue_oracle(session, store.tenant, model_id, "2", OPTIONS)
        else:
            job = references.queue_bank(session, store.tenant, model_id, BANK)
        claim = jobs.claim(session, job.id, "w")
    assert claim is not None
    with transaction() as session:
        models.delete(session, store.tenant, model_id)
    with transaction() as session:
        if kind == "oracle":
            jobs.finish_oracle(session, claim, blob="t/late", digest="2" * 64, size_bytes=1)
        else:
            jobs.finish_bank(session, claim, blob="t/late", num_models=4)
        assert "t/late" in trash.pending(session)
        assert jobs.get(session, store.tenant, job.id).status == "cancelled"
        oracles = select(tables.Version).where(tables.Version.role == "oracle")
        assert session.scalars(oracles).all() == []
