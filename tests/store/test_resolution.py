"""What selectors mean in a dataset, and what it costs to find out."""

from __future__ import annotations

import tracemalloc

import pytest
from sqlalchemy.orm import Session

from app.store import resolution
from app.store.session import reading, transaction
from tests import factories
from tests.store.conftest import World

NUM_ROWS = 12_000
ROWS = [[f"r{row}", row % 2, "train" if row % 3 else "holdout", "s"] for row in range(NUM_ROWS)]


@pytest.fixture
def dataset_id(store: World) -> str:
    with transaction() as session:
        return factories.a_dataset(session, store.tenant, ROWS).id


def resolve(session: Session, tenant_id: str, dataset_id: str, what: str) -> resolution.Resolution:
    if what == "class":
        return resolution.rows_of_class(session, tenant_id, dataset_id, 1)
    if what == "subject":
        return resolution.rows_of_subject(session, tenant_id, dataset_id, "s")
    return resolution.rows_of_dataset(session, tenant_id, dataset_id)


@pytest.mark.parametrize("what", ["class", "subject", "dataset"])
def test_training_rows_are_found_and_the_others_counted(
    store: World, dataset_id: str, what: str
) -> None:
    with reading() as session:
        found = resolve(session, store.tenant, dataset_id, what)
    training = [row for row, each in enumerate(ROWS) if each[2] == "train"]
    if what == "class":
        training = [row for row in training if ROWS[row][1] == 1]
    assert found.rows.tolist() == training
    assert found.num_holdout == (0 if what == "class" else NUM_ROWS // 3)


@pytest.mark.parametrize("what", ["class", "subject", "dataset"])
def test_rows_are_not_all_held_as_objects(store: World, dataset_id: str, what: str) -> None:
    with reading() as session:
        resolve(session, store.tenant, dataset_id, what)  # what is cached for good is cached now
        tracemalloc.start()
        try:
            resolve(session, store.tenant, dataset_id, what)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 64 * NUM_ROWS
