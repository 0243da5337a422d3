"""Prune first: any pruner with any unlearner, zeros to the end, and what the mask may know."""

import dataclasses
import math

import pytest
import torch
from pydantic import ValidationError

from core import importance, weights
from core.determinism import fresh_seed
from core.errors import Infeasible, MissingEvidence
from core.masks import apply_masks, holds, layer_weights
from core.pruners import pruners
from core.rungs import attempt
from core.training import fit
from core.unlearners import unlearners
from core.unlearners.prune_first import PruneFirstConfig, prune_first
from tests.core import cases
from tests.core.unlearners.test_contract import OPTIONS
from tests.core.unlearners.test_contract_on_images import job
from tests.worlds import CPU, accuracy, digits_world, trained

OTHERS = [
    entry.name
    for entry in unlearners
    if entry.name not in {"prune_first", "tuned"} and not entry.config.networks
]
PRUNERS = {
    "imp": {"rounds": 1, "epochs": 1},
    "omp": {"sparsity": 0.5, "epochs": 1},
    "synflow": {"sparsity": 0.5, "rounds": 5},
    "zeros": {},
}


def config(prune, then, **options):
    return unlearners.parse(
        {
            "name": "prune_first",
            "prune": {"name": prune, **PRUNERS[prune], **options},
            "then": {"name": then, **OPTIONS.get(then, {})},
        }
    )


def sparse_parent(world):
    model = trained(world)
    with torch.no_grad():
        first = next(iter(layer_weights(model).values()))
        first.masked_fill_(first.abs() <= first.abs().median(), 0)
    return model.requires_grad_(True)


def problem(**changes):
    world = cases.small_world()
    base = cases.problem(world, cases.first(world, 40), model=sparse_parent(world))
    return dataclasses.replace(base, **changes)


def seen_masks(monkeypatch, then):
    """Run prune_first with a look at what ``then`` is given."""
    seen = []
    entry = unlearners[then]

    def look(given, options):
        seen.append(given)
        return entry.run(given, options)

    monkeypatch.setitem(unlearners._entries, then, dataclasses.replace(entry, run=look))
    return seen


ON_RECORDS = [n for n in OTHERS if {"class", "images"}.isdisjoint(unlearners[n].config.needs)]
PAIRS = [*(("omp", then) for then in ON_RECORDS), *((prune, "fine_tune") for prune in PRUNERS)]


@pytest.mark.parametrize(("prune", "then"), PAIRS)
def test_zeros_stay_under_every_pair(prune, then, monkeypatch):
    seen = seen_masks(monkeypatch, then)
    given = problem()
    model = prune_first(given, config(prune, then))
    (inner,) = seen
    assert holds(model, inner.masks)
    assert 0.1 < given.tried[0]["sparsity"] < 0.9
    assert model.state_dict().keys() == trained(cases.small_world()).state_dict().keys()


def test_an_unlearner_that_ignores_masks_is_caught(monkeypatch):
    def careless(given, options):
        with torch.no_grad():
            for value in given.model.parameters():
                value.add_(1e-3)
        return given.model

    entry = dataclasses.replace(unlearners["fine_tune"], run=careless)
    monkeypatch.setitem(unlearners._entries, "fine_tune", entry)
    with pytest.raises(AssertionError, match="fine_tune moved weights that are pruned"):
        prune_first(problem(), config("zeros", "fine_tune"))


@pytest.mark.parametrize("then", ["fine_tune", "retrain"])
@pytest.mark.parametrize("prune", ["imp", "omp", "synflow"])
def test_pruners_train_on_retained_records_alone(prune, then, monkeypatch):
    seen = []
    entry = pruners[prune]

    def look(pruning, options):
        seen.append(pruning)
        return entry.run(pruning, options)

    monkeypatch.setitem(pruners._entries, prune, dataclasses.replace(entry, run=look))
    given = problem()
    prune_first(given, config(prune, then))
    (pruning,) = seen
    assert not torch.isin(pruning.records.rows, given.forget.rows).any()
    assert (pruning.trained, pruning.recover) == (
        (False, False) if then == "retrain" else (True, True)
    )
    assert (pruning.model is given.model) is pruning.trained


@pytest.mark.parametrize("prune", ["imp", "omp", "synflow"])
def test_retrain_gets_a_mask_that_the_forget_set_cannot_move(prune, monkeypatch):
    seen = seen_masks(monkeypatch, "retrain")
    options = config(prune, "retrain")
    assert options.is_exact
    here = problem()
    first = prune_first(here, options)
    other = cases.noise_world(num_train=40, num_holdout=10, num_classes=4, noise_dims=0)
    strange = dataclasses.replace(here.forget, images=other.train.images + 5)
    parent = here.fresh(99)
    second = prune_first(problem(forget=strange, model=parent), options)
    assert weights.equal(first, second)
    assert all(torch.equal(mask, seen[1].masks[name]) for name, mask in seen[0].masks.items())


def test_retrain_is_the_recipe_with_the_mask_from_the_same_start(monkeypatch):
    seen = seen_masks(monkeypatch, "retrain")
    given = problem()
    model = prune_first(given, config("synflow", "retrain"))
    seed = fresh_seed(given.seed)
    start = given.fresh(seed)
    expected = fit(start, given.retain, given.recipe, seed=seed, device=CPU, masks=seen[0].masks)
    assert weights.equal(model, expected)
    # the parent is there to be compared with, and stays as it was
    assert weights.equal(given.model, sparse_parent(cases.small_world()))


def test_zeros_of_the_parent_are_no_mask_for_retraining():
    with pytest.raises(ValidationError, match="made with the forget set"):
        config("zeros", "retrain")


def test_a_dense_parent_has_no_zeros_to_keep():
    dense = trained(cases.small_world())
    with pytest.raises(Infeasible, match="not pruned before"):
        prune_first(problem(model=dense), config("zeros", "fine_tune"))


def test_masks_that_are_there_already_are_kept_as_well():
    world = cases.small_world()
    model = trained(world).requires_grad_(True)
    name = next(iter(layer_weights(model)))
    mask = torch.ones_like(model.get_parameter(name), dtype=torch.bool)
    mask[0] = False
    result = prune_first(problem(model=model, masks={name: mask}), config("synflow", "fine_tune"))
    assert holds(result, {name: mask})


@pytest.mark.parametrize(("prune", "kept"), [("zeros", True), ("omp", False)])
def test_stored_importance_serves_only_the_weights_it_was_made_for(prune, kept, monkeypatch):
    given = problem()
    stored = importance.estimate(
        given.model, cases.small_world().train, "fisher_persample", batch_size=256, device=CPU
    )
    seen = seen_masks(monkeypatch, "ssd")
    prune_first(dataclasses.replace(given, importance=stored), config(prune, "ssd"))
    assert (seen[0].importance is not None) is kept


@pytest.mark.parametrize(
    "options",
    [
        {"then": {"name": "magic"}},
        {"then": {"name": "prune_first"}},
        {"then": {}},
        {"then": {"name": "ssd", "lam": -1}},
        {"then": {"name": "ssd", "alpha": 10}},
        {"then": {"name": "retrain", "colour": 1}},
        {"prune": {"name": "magic"}},
        {"prune": {"name": "omp", "sparsity": 1.0}},
        {"prune": {"name": "omp", "rounds": 3}},
        {"prune": {"name": "zeros", "sparsity": 0.5}},
        {"prunes": {}},
    ],
)
def test_bad_compositions_are_refused_where_they_are_bad(options):
    with pytest.raises(ValidationError) as caught:
        unlearners.parse({"name": "prune_first", **options})
    (error,) = caught.value.errors()
    (field,) = options
    assert error["loc"][:2] == ("prune_first", field)


def test_the_schema_offers_every_pruner_and_every_other_unlearner():
    schema = PruneFirstConfig.model_json_schema()
    fields = schema["properties"]
    assert sorted(fields["prune"]["discriminator"]["mapping"]) == pruners.names()
    assert sorted(fields["then"]["discriminator"]["mapping"]) == OTHERS
    assert all(field["description"].endswith(".") for field in (fields["prune"], fields["then"]))
    wanted = {unlearners[name].config.__name__ for name in OTHERS}
    assert wanted <= set(schema["$defs"])


DAMPENING = {"importance", "holdout"}


@pytest.mark.parametrize(
    ("prune", "then", "needs", "exact"),
    [
        ({"name": "omp"}, {"name": "fine_tune"}, {"retain", "recipe"}, False),
        ({"name": "omp", "epochs": 0}, {"name": "ssd"}, {"retain", *DAMPENING}, False),
        ({"name": "synflow"}, {"name": "ssd"}, {"retain", *DAMPENING}, False),
        ({"name": "zeros"}, {"name": "ssd"}, DAMPENING, False),
        (
            {"name": "zeros"},
            {"name": "eupmu", "forget_loss": "unseen"},
            {"retain", "holdout"},
            False,
        ),
        ({"name": "synflow"}, {"name": "fine_tune"}, {"retain"}, False),
        ({"name": "synflow"}, {"name": "retrain"}, {"retain", "recipe"}, True),
        ({"name": "imp"}, {"name": "retrain"}, {"retain", "recipe"}, True),
        ({"name": "zeros"}, {"name": "random_label"}, {"retain"}, False),
    ],
)
def test_needs_and_exactness_are_those_of_the_parts(prune, then, needs, exact):
    options = unlearners.parse({"name": "prune_first", "prune": prune, "then": then})
    assert set(options.all_needs) == needs
    assert options.is_exact is exact


@pytest.mark.parametrize("name", [name for name in OTHERS if name != "ssd"])
def test_a_plain_unlearner_says_what_its_class_says(name):
    options = unlearners[name].config()
    assert options.all_needs == options.needs
    assert options.is_exact == options.exact


@pytest.mark.parametrize("missing", ["retain", "recipe"])
def test_what_a_part_needs_is_missed(missing):
    with pytest.raises(MissingEvidence):
        prune_first(problem(**{missing: None}), config("omp", "ssd"))


def test_a_rung_without_what_a_part_needs_is_skipped_and_an_exact_one_is_called_so():
    rung, _ = attempt(job(recipe=None), config("omp", "fine_tune"), 0, 1)
    assert (rung.status, rung.exact) == ("skipped", False)
    assert rung.reason == ("prune_first needs the recipe: no recipe was registered with the model")
    exact = config("synflow", "retrain")
    rung, _ = attempt(job(policy="exact", deadline=math.inf), exact, 0, 1)
    assert rung.exact
    assert rung.status in {"published", "refused"}, rung.reason
    rung, _ = attempt(job(policy="exact"), config("synflow", "fine_tune"), 0, 1)
    assert rung.reason == "the exact policy tries exact rungs only"


def test_a_sparse_model_forgets_in_the_direction_of_its_oracle():
    world = digits_world(num_records=800, epochs=10)
    forget = world.train.labels == 3
    given = cases.problem(world, forget, selector="class")
    options = unlearners.parse(
        {
            "name": "prune_first",
            "prune": {"name": "omp", "sparsity": 0.8, "epochs": 5},
            "then": {"name": "fine_tune", "epochs": 3, "lr": 0.05},
        }
    )
    before = accuracy(given.model, given.forget)
    model = prune_first(given, options)
    oracle = cases.oracle(world, forget)
    assert before > 0.9
    assert accuracy(oracle, given.forget) == 0
    assert accuracy(model, given.forget) < before / 2
    kept = world.holdout.take(world.holdout.labels != 3)
    assert accuracy(model, kept) > accuracy(oracle, kept) - 0.05


def test_masks_of_ssd_are_never_selected_nor_counted():
    given = problem()
    first = next(iter(layer_weights(given.model)))
    mask = given.model.get_parameter(first).detach() != 0
    inner = dataclasses.replace(given, masks={first: mask})
    apply_masks(given.model, inner.masks)
    total = sum(p.numel() for p in given.model.parameters()) - int((~mask).sum())
    unlearners["ssd"].run(inner, unlearners["ssd"].config(selection="adaptive"))
    (found,) = [entry for entry in inner.tried if "fraction" in entry]
    assert found["selected"] == round(found["fraction"] * total)


NORMED = cases.noise_world(num_train=200, num_holdout=200, noise_dims=20, batch_norm=True)


@pytest.mark.parametrize(
    ("prune", "options", "kept"),
    [
        ("omp", {}, True),
        ("synflow", {}, True),
        ("omp", {"rewind": True}, False),
        ("imp", {}, False),
    ],
)
def test_frozen_statistics_stay_while_it_prunes_or_it_says_that_they_are_new(prune, options, kept):
    given = cases.problem(NORMED, cases.first(NORMED, 40), batch_size=32, bn_policy="frozen")
    model = prune_first(given, config(prune, "neggrad_plus", **options))
    same = [torch.equal(model.get_buffer(n), b) for n, b in trained(NORMED).named_buffers()]
    assert all(same) is kept
    said = {"batch_norm": "not the parent's: the pruner starts anew"}
    assert (said in given.tried) is not kept
    usual = dataclasses.replace(given, model=trained(NORMED), bn_policy="recalibrate", tried=[])
    prune_first(usual, config(prune, "neggrad_plus", **options))
    assert said not in usual.tried
