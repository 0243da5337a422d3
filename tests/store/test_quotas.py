"""How long the jobs of a tenant may compute within a day."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy.orm import Session

from app.store import jobs, references, session, tables
from app.store.errors import TooMany
from app.store.session import transaction
from tests import factories
from tests.store.conftest import World

OPTIONS = {"seed": 0, "time_limit_seconds": 600.0}
BANK = {"models": 4, "seed": 0, "batch_size": 256}


@pytest.fixture
def model_id(store: World) -> str:
    session.configure(store.settings.model_copy(update={"max_gpu_minutes_per_day": 10}))
    with transaction() as writer:
        return factories.a_model(writer, store.tenant).id


def computed(store: World, minutes: float, *, ago: float = 0.0, **over: object) -> str:
    """Enter a job that computed for so long, and ended so many hours ago; return its id."""
    end = datetime.now(UTC) - timedelta(hours=ago)
    job = tables.Job(tenant_id=store.tenant, id=f"job_{minutes}_{ago}", kind="unlearn")
    job.status, job.started_at, job.finished_at = "failed", end - timedelta(minutes=minutes), end
    for name, value in over.items():
        setattr(job, name, value)
    with transaction() as writer:
        writer.add(job)
    return job.id


@pytest.mark.parametrize(
    "ask",
    [
        lambda writer, tenant, model: factories.an_audit(writer, tenant, model),
        lambda writer, tenant, model: references.queue_bank(writer, tenant, model, BANK),
        lambda writer, tenant, model: references.queue_oracle(
            writer, tenant, model, "@serving", OPTIONS
        ),
    ],
    ids=["audit", "bank", "oracle"],
)
def test_who_computed_all_day_gathers_no_more_evidence_and_may_forget(
    store: World, model_id: str, ask: Callable[[Session, str, str], object]
) -> None:
    with transaction() as writer:
        factories.published(writer, store.tenant, model_id)
    computed(store, 6.5)
    computed(store, 4.0, ago=23.0)
    with pytest.raises(TooMany) as refused, transaction() as writer:
        ask(writer, store.tenant, model_id)
    assert refused.value.code == "compute_quota_exceeded"
    assert refused.value.extra == {"limit_minutes": 10, "used_minutes": 10}
    with transaction() as writer:
        wanted = factories.a_request(writer, store.tenant, model_id, record_ids=["r1"])
    assert wanted.status == "queued"


def test_what_is_running_counts(store: World, model_id: str) -> None:
    over = {"status": "running", "finished_at": None, "lease_until": 1.0, "model_id": model_id}
    computed(store, 11.0, **over)
    with pytest.raises(TooMany), transaction() as writer:
        references.queue_bank(writer, store.tenant, model_id, BANK)


def test_what_is_long_ago_of_others_or_no_computing_does_not_count(
    store: World, model_id: str
) -> None:
    computed(store, 11.0, ago=25.0)
    computed(store, 12.0, kind="ingest")
    computed(store, 13.0, tenant_id=store.stranger)
    with transaction() as writer:
        references.queue_bank(writer, store.tenant, model_id, BANK)


def test_evidence_that_failed_is_not_tried_again(store: World, model_id: str) -> None:
    job_id = computed(store, 11.0, kind="bank", model_id=model_id, options=BANK)
    with pytest.raises(TooMany), transaction() as writer:
        jobs.retry(writer, store.tenant, job_id)
