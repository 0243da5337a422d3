"""Which unlearners suit a situation: rules, costs, and reasons for what is left out."""

from pathlib import Path

import pytest

import core
from core.audits import audits
from core.methods import METHODS, Method, known, registered
from core.policies import ladder
from core.recommend import MOST_APPROXIMATE, RULES, recommend
from core.situation import Situation
from core.unlearners import unlearners

ALL = frozenset(METHODS)


def situation(**changes):
    usual = {
        "selector": "records",
        "num_forget": 500,
        "num_train": 10_000,
        "has_recipe": True,
        "has_holdout": True,
        "has_importance": True,
        "architecture": "resnet20",
        "modality": "image",
        "epochs": 40,
    }
    return Situation(**{**usual, **changes})


def names(found):
    return [candidate.unlearner["name"] for candidate in found.candidates]


def left_out(found):
    return {each.name: each.reason for each in found.left_out}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ["fine_tune", "retrain"]),
        ({"selector": "class"}, ["fine_tune", "ssd", "delete", "retrain"]),
        ({"architecture": "vit"}, ["neggrad_plus", "retrain"]),
        ({"architecture": "torchvision/vit_b_16"}, ["neggrad_plus", "retrain"]),
        ({"architecture": "torchvision/convnext_tiny"}, ["neggrad_plus", "retrain"]),
        ({"num_forget": 199}, ["retrain", "fine_tune", "eupmu", "salun"]),
        ({"num_forget": 50}, ["retrain", "influence", "fine_tune", "eupmu"]),
        ({"num_forget": 2500}, ["fine_tune", "retrain"]),
        ({"num_forget": 2501}, ["retrain", "eupmu", "fine_tune", "salun"]),
        (
            {"num_forget": 2501, "selector": "class"},
            ["retrain", "eupmu", "fine_tune", "l1_sparse"],
        ),
        ({"architecture": "linear", "policy": "exact"}, ["ridge_head", "retrain"]),
        ({"policy": "fast", "selector": "class"}, ["fine_tune"]),
        ({"policy": "fast", "num_forget": 3}, ["retrain"]),
        ({"purpose": "poison_removal"}, ["ssd", "prune_first", "l1_sparse", "retrain"]),
        (
            {"purpose": "poison_removal", "num_forget": 30},
            ["ssd", "prune_first", "l1_sparse", "retrain"],
        ),
        (
            {"purpose": "poison_removal", "num_forget": 2501},
            ["ssd", "prune_first", "l1_sparse", "retrain"],
        ),
        (
            {"purpose": "poison_removal", "budget_spent": "requests"},
            ["retrain", "ssd", "prune_first", "l1_sparse"],
        ),
        ({"num_earlier": 5, "selector": "class"}, ["fine_tune", "retrain"]),
        ({"has_recipe": False}, ["fine_tune", "eupmu", "salun"]),
        ({"epochs": None}, ["fine_tune", "eupmu", "salun", "retrain"]),
        ({"has_retain": False}, ["ssd", "delete"]),
        ({"has_retain": False, "selector": "class"}, ["ssd", "delete"]),
        ({"has_retain": False, "selector": "class", "has_batchnorm": True}, ["ssd", "delete"]),
        ({"has_retain": False, "purpose": "poison_removal"}, ["ssd", "delete"]),
        ({"has_retain": False, "estimator": "fisher_model"}, ["delete"]),
        ({"has_retain": False, "has_importance": False}, []),
        ({"has_retain": False, "has_holdout": False}, []),
        ({"has_recipe": False, "has_holdout": False}, []),
        (
            {"budget_spent": "10 approximate requests in a row"},
            ["retrain", "fine_tune", "eupmu", "salun"],
        ),
    ],
)
def test_a_situation_gets_its_ladder(changes, expected):
    assert names(recommend(situation(**changes), ALL)) == expected


def test_poison_is_dampened_until_its_label_is_gone():
    found = recommend(situation(purpose="poison_removal"), ALL)
    potion = {"name": "ssd", "selection": "potion", "target_accuracy": 0.1}
    assert found.candidates[0].unlearner == potion


@pytest.mark.parametrize(("selector", "why"), [("records", "random records"), ("class", "stands")])
def test_what_dampening_can_do_without_the_rest_is_said(selector, why):
    found = recommend(situation(has_retain=False, selector=selector), ALL)
    assert why in found.candidates[0].reason


@pytest.mark.parametrize("purpose", ["erasure", "poison_removal"])
@pytest.mark.parametrize("selector", ["records", "class"])
def test_batch_norm_that_cannot_be_measured_again_is_remarked(selector, purpose):
    """Dampening keeps its place: on the digits it cost less utility than distilling."""
    asked = {"has_retain": False, "selector": selector, "purpose": purpose}
    for changes in ({"has_batchnorm": True}, {}):
        ssd, delete = recommend(situation(**asked, **changes), ALL).candidates
        assert ("batch norm without" in ssd.reason) is bool(changes)
        assert ("batch norm without" in delete.reason) is bool(changes)
    retained = recommend(situation(has_batchnorm=True, selector="class"), ALL).candidates
    assert not any("batch norm without" in candidate.reason for candidate in retained)


@pytest.mark.parametrize(
    ("estimator", "options"),
    [
        (None, {}),
        ("fisher_persample", {}),
        ("fisher_batch", {"estimator": "batch"}),
        ("mas", {"estimator": "mas"}),
    ],
)
@pytest.mark.parametrize("purpose", ["erasure", "poison_removal"])
def test_dampening_takes_the_importance_that_is_stored(estimator, options, purpose):
    found = recommend(
        situation(has_retain=False, selector="class", estimator=estimator, purpose=purpose), ALL
    )
    chosen = found.candidates[0].unlearner
    assert {key: chosen[key] for key in chosen if key == "estimator"} == options
    assert unlearners.parse(chosen).importance_taken == (estimator or "fisher_persample")
    measured = recommend(situation(selector="class", estimator="mas"), ALL)
    assert {"name": "ssd"} in [candidate.unlearner for candidate in measured.candidates]


@pytest.mark.parametrize(
    "name",
    [
        "vit",
        "torchvision/swin_v2_t",
        *(f"timm/{each}" for each in ("deit3_base_patch16_224", "beitv2_base_patch16_224")),
        *(f"timm/{each}" for each in ("eva02_base_patch14_224", "hiera_base_224", "cait_s24_224")),
        *(f"transformers/{each}" for each in ("deit", "beit", "dinov2", "hiera", "pvt_v2")),
        *(f"transformers/{each}" for each in ("data2vec-vision", "ijepa", "vit_msn", "swinv2")),
    ],
)
def test_networks_of_attention(name):
    assert situation(architecture=name).is_transformer


@pytest.mark.parametrize("name", ["resnet20", "timm/swiftformer_s", "transformers/levit", "mlp"])
def test_networks_of_something_else(name):
    assert not situation(architecture=name).is_transformer
    assert not situation(architecture=name).has_layernorm


@pytest.mark.parametrize("name", ["torchvision/convnext_base", "transformers/convnextv2", "vit"])
def test_networks_of_layer_norm(name):
    assert situation(architecture=name).has_layernorm
    built_otherwise = situation(architecture=name, has_batchnorm=True)
    assert built_otherwise.has_layernorm is built_otherwise.is_transformer


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ["fine_tune", "ssd", "delete", "retrain"]),
        ({"time_budget_seconds": 1e9}, ["fine_tune", "ssd", "delete", "retrain"]),
        ({"time_budget_seconds": 100.0}, ["fine_tune", "ssd", "l1_sparse", "retrain"]),
        ({"time_budget_seconds": 50.0}, ["ssd", "random_label", "delete", "retrain"]),
        ({"time_budget_seconds": 50.0, "policy": "fast"}, ["ssd"]),
        ({"time_budget_seconds": 50.0, "policy": "exact"}, ["retrain"]),
        (
            {"time_budget_seconds": 50.0, "num_forget": 20},
            ["ssd", "random_label", "delete", "retrain"],
        ),
        ({"time_budget_seconds": 0.01}, ["fine_tune", "ssd", "delete", "retrain"]),
    ],
)
def test_a_job_tries_what_fits_its_time_first(changes, expected):
    asked = situation(selector="class", seconds_per_pass=10.0, **changes)
    assert [rung["name"] for rung in ladder(asked, ALL)] == expected


@pytest.mark.parametrize("policy", ["fast", "standard", "strict", "exact"])
@pytest.mark.parametrize("selector", ["class", "records"])
@pytest.mark.parametrize("num_forget", [1, 60, 500, 5000])
@pytest.mark.parametrize("has_retain", [True, False])
def test_every_unlearner_is_a_candidate_or_left_out_with_a_reason(
    policy, selector, num_forget, has_retain
):
    found = recommend(
        situation(policy=policy, selector=selector, num_forget=num_forget, has_retain=has_retain),
        ALL,
    )
    assert sorted([*names(found), *left_out(found)]) == sorted(ALL)
    assert all(candidate.reason for candidate in found.candidates)
    assert all(left_out(found).values())
    approximate = [candidate for candidate in found.candidates if not candidate.exact]
    assert len(approximate) <= MOST_APPROXIMATE


@pytest.mark.parametrize(
    ("changes", "name", "reason"),
    [
        ({}, "unsir", "it needs a request that names a class"),
        ({"has_recipe": False}, "retrain", "it needs the recipe of the model"),
        ({"has_holdout": False}, "eupmu", "without a holdout nothing could judge it"),
        ({"policy": "exact"}, "eupmu", "the exact policy tries exact routes only"),
        ({}, "ridge_head", "it is for the networks linear only"),
        ({}, "ssd", "nothing is selected"),
        ({}, "eupmu", "for at most 33 % of a retraining"),
        ({}, "famo", "nothing speaks for it here"),
        ({"num_earlier": 9, "selector": "class"}, "ssd", "its damage compounds"),
        ({"purpose": "poison_removal"}, "random_label", "one more poison"),
        ({"has_retain": False, "has_importance": False}, "delete", "no method is reliable"),
        ({"has_retain": False, "has_importance": False}, "ssd", "it needs stored importance"),
        ({"has_retain": False, "estimator": "fisher_model"}, "ssd", "it needs stored importance"),
        ({"policy": "fast"}, "salun", "the first rung alone"),
    ],
)
def test_why_an_unlearner_was_left_out(changes, name, reason):
    assert reason in left_out(recommend(situation(**changes), ALL))[name]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_forget": 20}, "below 200 records"),
        ({"num_forget": 20}, "reference models do not stand in"),
        ({"num_forget": 4000}, "over 25 % of the data"),
        ({"budget_spent": "10 in a row"}, "budget spent (10 in a row): retrain first"),
    ],
)
def test_retraining_first_says_why(changes, reason):
    first = recommend(situation(**changes), ALL).candidates[0]
    assert first.exact
    assert reason in first.reason


def test_costs_are_passes_and_seconds():
    found = recommend(situation(selector="class", seconds_per_pass=10.0), ALL)
    cost = {c.unlearner["name"]: (c.passes, c.seconds) for c in found.candidates}
    assert cost["ssd"] == pytest.approx((0.05, 0.5))
    assert cost["retrain"] == pytest.approx((38.0, 380.0))
    assert cost["fine_tune"] == pytest.approx((38.0 / 4, 380.0 / 4))
    unstored = recommend(situation(selector="class", has_importance=False), ALL)
    assert (unstored.candidates[1].passes, unstored.candidates[1].seconds) == (1.05, None)


def test_an_unlearner_asked_for_by_name_costs_what_its_options_say():
    cost = {}
    for epochs in (1, 4):
        asked = situation(unlearner={"name": "l1_sparse", "epochs": epochs})
        cost[epochs] = recommend(asked, ALL).candidates[0].passes
    assert cost == pytest.approx({1: 0.95, 4: 3.8})


@pytest.mark.parametrize(("num_forget", "passes"), [(1, 10), (500, 38)])
def test_shards_that_are_not_touched_cost_nothing(num_forget, passes):
    asked = situation(num_forget=num_forget, architecture="ensemble", members=4)
    cost = {c.unlearner["name"]: c.passes for c in recommend(asked, ALL).candidates}
    assert cost["sisa"] == pytest.approx(passes, rel=0.01)


@pytest.mark.parametrize("selector", ["class", "records"])
@pytest.mark.parametrize("epochs", [1, 4, 12, 40, 200])
def test_rungs_ahead_of_retraining_cost_at_most_a_third_of_it(selector, epochs):
    found = recommend(situation(selector=selector, epochs=epochs), ALL).candidates
    *approximate, retrain = found
    assert len(approximate) == 1 or sum(c.passes for c in approximate) <= retrain.passes / 3
    assert 1 <= len(approximate) <= MOST_APPROXIMATE


def test_what_does_not_fit_the_time_budget_is_left_out():
    asked = situation(selector="class", seconds_per_pass=10.0, time_budget_seconds=100.0)
    found = recommend(asked, ALL)
    assert "retrain" not in names(found)
    assert "about 380 s are expected" in left_out(found)["retrain"]
    assert all(candidate.seconds <= 100 for candidate in found.candidates)


def test_unregistered_picks_are_passed_over():
    found = recommend(situation(), {"fine_tune", "retrain"})
    assert names(found) == ["fine_tune", "retrain"]
    assert left_out(found) == {}


def test_a_foreign_unlearner_is_never_recommended_but_can_be_asked_for():
    found = recommend(situation(), {**known(ALL), "plugin": Method()})
    assert "asked for by name" in left_out(found)["plugin"]
    asked = recommend(situation(unlearner={"name": "plugin", "x": 1}), {"plugin": Method()})
    assert asked.candidates[0].unlearner == {"name": "plugin", "x": 1}


def test_names_are_read_from_the_folders_without_loading_torch():
    assert registered() == frozenset(unlearners.names())
    assert registered("audits") == frozenset(audits.names())


@pytest.mark.parametrize("name", sorted(registered() & ALL))
def test_facts_agree_with_the_registered_options(name):
    options = unlearners.parse({"name": name})
    assert METHODS[name].exact == options.is_exact
    assert set(METHODS[name].needs) == set(options.all_needs)
    assert set(METHODS[name].networks) == set(options.networks)


@pytest.mark.parametrize("name", sorted(registered() & ALL))
def test_options_of_picks_are_options(name):
    for rule in RULES:
        unlearners.parse({"name": name, **rule.options.get(name, {})})


def test_rules_speak_of_known_unlearners_only():
    for rule in RULES:
        assert {*rule.picks, *rule.avoid, *rule.remarks} <= ALL
        assert set(rule.options) <= ALL
        assert rule.situation.isascii()


@pytest.mark.parametrize("module", ["situation", "methods", "recommend", "policies"])
def test_choosing_is_free_of_torch(module):
    source = (Path(core.__file__).parent / f"{module}.py").read_text()
    assert "import torch" not in source
