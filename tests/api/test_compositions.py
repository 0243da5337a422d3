"""Compositions at the door: where a nested option is wrong, and what a composition needs."""

import pytest

from app.api.variants import refuse_idle, unlearner
from app.store.errors import Unacceptable
from core.situation import Situation

OMP = {"name": "omp", "epochs": 0}


def composed(**changes):
    return {"name": "prune_first", **changes}


def situation(policy, *, recipe=True, holdout=True):
    return Situation(
        policy=policy,
        selector="records",
        num_forget=5,
        num_train=100,
        has_recipe=recipe,
        has_holdout=holdout,
        architecture="mlp",
        modality="features",
    )


def test_defaults_are_filled_in_at_every_depth():
    found = unlearner(composed(prune={"name": "synflow"}))
    assert found["prune"] == {"name": "synflow", "sparsity": 0.9, "rounds": 100}
    assert found["then"]["name"] == "fine_tune"
    assert found["then"]["schedule"] == "constant"
    assert unlearner(found) == found


@pytest.mark.parametrize(
    ("body", "pointer", "code"),
    [
        (composed(then={"name": "magic"}), "/unlearner/then", "validation_failed"),
        (composed(then={"name": "prune_first"}), "/unlearner/then", "validation_failed"),
        (composed(then={"name": "retrain", "hue": 1}), "/unlearner/then/hue", "unknown_field"),
        (composed(prune={**OMP, "sparsity": 2}), "/unlearner/prune/sparsity", "validation_failed"),
        (
            composed(prune={"name": "zeros"}, then={"name": "retrain"}),
            "/unlearner/prune",
            "validation_failed",
        ),
    ],
)
def test_a_nested_mistake_is_pointed_at(body, pointer, code):
    with pytest.raises(Unacceptable) as caught:
        unlearner(body)
    assert caught.value.code == code
    assert [error["pointer"] for error in caught.value.errors] == [pointer]


@pytest.mark.parametrize(
    ("body", "policy", "given"),
    [
        (composed(prune={"name": "omp"}), "standard", {"recipe": False}),
        (composed(prune={"name": "omp"}), "exact", {}),
        (composed(prune=OMP), "standard", {"holdout": False}),
    ],
)
def test_what_a_composition_cannot_use_is_refused(body, policy, given):
    with pytest.raises(Unacceptable) as caught:
        refuse_idle(unlearner(body), situation(policy, **given))
    assert caught.value.code == "algorithm_not_applicable"


@pytest.mark.parametrize(
    ("body", "policy", "given"),
    [
        (composed(prune=OMP), "standard", {"recipe": False}),
        (composed(then={"name": "retrain"}), "exact", {"holdout": False}),
    ],
)
def test_what_a_composition_does_not_need_may_be_missing(body, policy, given):
    refuse_idle(unlearner(body), situation(policy, **given))
