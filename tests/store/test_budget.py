"""The deletion budget: what approximate versions add up to, and what happens at a cap."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.store import budget, jobs, models
from app.store import session as sessions
from app.store.session import reading, transaction
from tests import factories
from tests.store.conftest import World
from worker import steps


def rung(changed: float | None = 0.1, utility: float | None = 0.004) -> dict[str, Any]:
    return {
        "index": 0,
        "status": "published",
        "unlearner": {"name": "ssd"},
        "gates": [{"name": "changed", "value": changed}, {"name": "utility", "value": utility}],
    }


@pytest.fixture
def model_id(store: World) -> str:
    with transaction() as session:
        rows = factories.index(num_train=1000)
        dataset = factories.a_dataset(session, store.tenant, rows)
        return factories.a_model(session, store.tenant, dataset_id=dataset.id).id


def claimed(world: World, model_id: str, *ids: str) -> jobs.Claim:
    with transaction() as session:
        made = factories.a_request(session, world.tenant, model_id, record_ids=[*ids])
        claim = jobs.claim(session, made.job_id, "w")
        factories.bytes_for_all(session)
    assert claim is not None
    return claim


def apply(world: World, model_id: str, *ids: str, outcome: str, **gates: Any) -> None:
    claim = claimed(world, model_id, *ids)
    with transaction() as session:
        factories.publish(session, claim, outcome=outcome, rungs=[rung(**gates)])


def spent(world: World, model_id: str) -> budget.Spent:
    with reading() as session:
        return budget.spent(session, models.get(session, world.tenant, model_id))


def test_a_new_model_has_spent_nothing(store: World, model_id: str) -> None:
    assert spent(store, model_id) == budget.Spent()


def test_approximate_versions_add_up(store: World, model_id: str) -> None:
    apply(store, model_id, "r0", "r1", outcome="erased_approximate")
    apply(store, model_id, "r2", outcome="erased_approximate", utility=-0.001)
    found = spent(store, model_id)
    assert found.num_versions == 2
    assert found.share == pytest.approx(0.003)
    assert found.relative_change == pytest.approx(0.2)
    assert found.utility_loss == pytest.approx(0.003)


def test_an_oracle_spends_nothing_and_ends_no_lineage(store: World, model_id: str) -> None:
    apply(store, model_id, "r0", outcome="erased_approximate")
    with transaction() as session:
        factories.an_oracle(session, store.tenant, model_id)
    assert spent(store, model_id).num_versions == 1


def test_retraining_sets_the_budget_back(store: World, model_id: str) -> None:
    apply(store, model_id, "r0", outcome="erased_approximate")
    apply(store, model_id, "r1", outcome="erased_exact")
    assert spent(store, model_id) == budget.Spent()
    apply(store, model_id, "r2", outcome="erased_approximate", changed=None)
    assert spent(store, model_id).num_versions == 1


@pytest.mark.parametrize(
    ("cap", "words"),
    [
        ({"max_approximate_versions": 1}, "1 approximate versions in a row"),
        ({"max_approximate_share": 0.001}, "0.1 % of the records"),
        ({"max_relative_change": 0.1}, "moved by 0.10 of their norm"),
        ({"max_utility_loss": 0.004}, "0.4 points of accuracy lost"),
    ],
)
def test_at_a_cap_retraining_comes_first(
    store: World, model_id: str, tmp_path: Path, cap: dict[str, Any], words: str
) -> None:
    large = [f"r{n}" for n in range(1, 221)]
    apply(store, model_id, "r0", outcome="erased_approximate")
    claim = claimed(store, model_id, *large)
    assert steps.order(claim, tmp_path)["arguments"]["ladder"][0]["name"] != "retrain"
    sessions.configure(store.settings.model_copy(update=cap))
    assert words in (claim.spent.reason() or "")
    assert steps.order(claim, tmp_path)["arguments"]["ladder"][0]["name"] == "retrain"
    done = steps.Unlearned(
        outcome="not_erased",
        published=None,
        rungs=[],
        weights=None,
        digest=None,
        code="ladder_exhausted",
        reason="nothing passed",
    )
    said = steps._reason(claim, done)
    assert said.startswith("budget spent (")
    assert said.endswith("retrain first; nothing passed")
    assert claim.model is not None
    claim.model.recipe = None
    assert "no recipe to retrain with" in steps._reason(claim, done)


def test_the_next_job_learns_of_the_requests_before_it(store: World, model_id: str) -> None:
    first = claimed(store, model_id, "r0", "r1")
    assert first.earlier == {}
    with transaction() as session:
        factories.publish(session, first)
    second = claimed(store, model_id, "r5")
    (request_id,) = first.requests
    assert {name: rows.tolist() for name, rows in second.earlier.items()} == {request_id: [0, 1]}
    assert second.excluded.tolist() == [0, 1]


@pytest.mark.slow
@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_of_a_hundred_requests_every_twenty_first_retrains(
    store: World, model_id: str, tmp_path: Path
) -> None:
    retrained = []
    for number in range(100):
        first = 2 * number
        claim = claimed(store, model_id, f"r{first}", f"r{first + 1}")
        assert len(claim.earlier) == number
        assert claim.excluded.tolist() == [*range(first)]
        order = steps.order(claim, tmp_path)["arguments"]
        assert {*order["earlier"]} == {*claim.earlier}
        is_spent = claim.spent.reason() is not None
        if is_spent:
            assert order["ladder"][0] == {"name": "retrain"}
            retrained.append(number)
        outcome = "erased_exact" if is_spent else "erased_approximate"
        with transaction() as session:
            factories.publish(session, claim, outcome=outcome, rungs=[rung(0.01, 0.0)])
    assert retrained == [20, 41, 62, 83]
