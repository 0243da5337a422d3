"""SSD: the search, its guard, and which importance is used."""

import contextlib
import dataclasses
import math

import pytest
import torch
from pydantic import ValidationError

from core import importance, weights
from core.errors import Infeasible, MissingEvidence
from core.unlearners import ssd as module
from core.unlearners._batchnorm import settle
from core.unlearners._guard import Trial
from core.unlearners.ssd import SSDConfig, ssd
from tests.core import cases
from tests.worlds import CPU, accuracy, digits_world, trained


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"alpha": 10}, "alpha"),
        ({"alpha": 10, "estimator": "mas"}, "alpha"),
        ({"alpha": 10, "estimator": "batch", "selection": "guarded"}, "selection"),
        ({"selection": "alpha", "estimator": "batch"}, "selection"),
        ({"alpha": 0, "estimator": "batch"}, "alpha"),
        ({"lam": -1}, "lam"),
        ({"max_trials": 9}, "max_trials"),
        ({"strength": 1}, "strength"),
    ],
)
def test_options_that_contradict_each_other_are_refused_by_name(options, field):
    with pytest.raises(ValidationError) as refused:
        SSDConfig(**options)
    assert [error["loc"] for error in refused.value.errors()] == [(field,)]


def test_alpha_is_for_the_batch_estimator():
    assert SSDConfig(alpha=10, estimator="batch").chosen_selection == "alpha"
    assert SSDConfig().chosen_selection == "guarded"


def class_problem(**changes):
    world = cases.small_world()
    forget = world.train.labels == 1
    return cases.problem(world, forget, selector="class", **changes)


def stored(estimator="fisher_persample", batch_size=256):
    world = cases.small_world()
    return importance.estimate(
        trained(world), world.train, estimator, batch_size=batch_size, device=CPU
    )


class Script:
    """A guard that answers from a list of (forgot, kept utility)."""

    def __init__(self, answers):
        self.answers = list(answers)

    def __call__(self, problem, max_drop):
        return self

    def measure(self, model):
        forgot, kept = self.answers.pop(0)
        return Trial(0.0, 0.0, 0.0, forgot, kept)


def searched(monkeypatch, answers):
    problem = class_problem(importance=stored())
    monkeypatch.setattr(module, "Guard", Script(answers))
    parent = {n: p.clone() for n, p in problem.model.named_parameters()}
    try:
        model = ssd(problem, SSDConfig())
        changed = sum(int((p != parent[n]).sum()) for n, p in model.named_parameters())
    except Infeasible:
        changed = None
    trials = [t["fraction"] for t in problem.tried if "fraction" in t]
    size = sum(p.numel() for p in parent.values())
    return trials, changed, size


def test_the_search_bisects_geometrically_between_one_weight_and_a_fifth(monkeypatch):
    trials, _, size = searched(monkeypatch, [(True, True), (False, True)] + [(True, True)] * 6)
    first = math.sqrt(0.2 / size)
    second = math.sqrt(first / size)
    assert trials[:3] == pytest.approx([first, second, math.sqrt(first * second)])
    assert len(trials) == 8


def test_forgotten_at_the_price_of_utility_searches_lower(monkeypatch):
    trials, changed, _ = searched(monkeypatch, [(True, False)] * 8)
    assert trials == sorted(trials, reverse=True)
    assert changed is None


def test_neither_stops_at_once(monkeypatch):
    trials, changed, _ = searched(monkeypatch, [(False, False)])
    assert len(trials) == 1
    assert changed is None


def test_the_smallest_feasible_strength_is_kept(monkeypatch):
    answers = [(False, True), (True, True), (False, True), (False, True), (False, False)]
    trials, changed, size = searched(monkeypatch, answers)
    assert len(trials) == 5
    assert 0 < changed <= max(1, round(trials[1] * size))


def test_a_class_is_forgotten_and_the_others_kept():
    world = digits_world("features")
    problem = cases.problem(world, world.train.labels == 1, selector="class")
    others = problem.tuning.take(problem.tuning.labels != 1)
    before = accuracy(problem.model, others)
    model = ssd(problem, SSDConfig())
    assert accuracy(model, problem.forget) <= 1 / 10
    assert accuracy(model, others) >= before - 0.01
    trials = problem.tried[1:]
    feasible = [t["selected"] for t in trials if t["forgot"] and t["kept_utility"]]
    parent = trained(world)
    changed = sum(
        int((a != b).sum()) for a, b in zip(model.parameters(), parent.parameters(), strict=True)
    )
    assert 0 < changed <= min(feasible)


def test_random_records_are_out_of_reach():
    world = cases.noise_world(num_train=1000, num_holdout=1000, num_classes=4, noise_dims=200)
    problem = cases.problem(world, cases.first(world, 100))
    with pytest.raises(Infeasible):
        ssd(problem, SSDConfig(max_utility_drop=0.0))
    assert len(problem.tried) > 1


def test_stored_importance_gives_what_measuring_it_gives():
    options = SSDConfig(selection="adaptive")
    with_store, without = class_problem(importance=stored()), class_problem()
    first, second = ssd(with_store, options), ssd(without, options)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert [p.tried[0]["importance"] for p in (with_store, without)] == ["stored", "measured"]


def test_with_stored_importance_no_retain_record_is_read():
    problem = class_problem(importance=stored(), retain=None)
    assert ssd(problem, SSDConfig(selection="adaptive")) is problem.model


@pytest.mark.parametrize(
    ("kept", "config"),
    [
        (("fisher_persample", 256), {"estimator": "mas"}),
        (("fisher_batch", 128), {"estimator": "batch"}),
    ],
)
def test_importance_of_another_kind_is_not_used(kept, config):
    options = SSDConfig(selection="adaptive", **config)
    problem = class_problem(importance=stored(*kept))
    ssd(problem, options)
    assert problem.tried[0]["importance"] == "measured"


def test_without_retained_records_importance_of_another_kind_is_not_enough():
    kept = stored("fisher_persample", 256)
    problem = dataclasses.replace(class_problem(importance=kept), retain=None)
    with pytest.raises(MissingEvidence):
        ssd(problem, SSDConfig(selection="adaptive", estimator="mas"))


def test_without_retained_records_batches_are_those_of_what_is_stored():
    options = SSDConfig(selection="adaptive", estimator="batch")
    kept = stored("fisher_batch", 128)
    problem = dataclasses.replace(class_problem(importance=kept), retain=None)
    model = ssd(problem, options)
    assert problem.tried[0]["importance"] == "stored"
    same = dataclasses.replace(
        class_problem(importance=kept), retain=None, batch_size=128, bn_policy="frozen"
    )
    assert weights.equal(model, ssd(same, options))


def test_mas_needs_no_labels():
    problem = class_problem()
    blind = dataclasses.replace(
        problem,
        forget=dataclasses.replace(problem.forget, labels=problem.forget.labels * 0),
        retain=dataclasses.replace(problem.retain, labels=problem.retain.labels * 0),
    )
    options = SSDConfig(estimator="mas", selection="adaptive")
    assert weights.equal(ssd(blind, options), ssd(class_problem(), options))


def test_alpha_selects_by_the_ratio_of_batch_importance():
    problem = class_problem(batch_size=32)
    ssd(problem, SSDConfig(estimator="batch", alpha=5))
    assert problem.tried[-1]["alpha"] == 5
    assert problem.tried[-1]["selected"] > 0


def test_what_recalibration_costs_does_not_end_the_search():
    world = cases.noise_world(
        num_train=600, num_holdout=600, num_classes=4, noise_dims=20, batch_norm=True, seed=1
    )
    forget = world.train.labels == 1
    skewed = world.train.take(world.train.labels == 2)
    tuning = cases.halves(world)[0]
    kept = tuning.take(tuning.labels != 1)
    probe = cases.problem(world, forget, selector="class", retain=skewed)
    before = accuracy(probe.model, kept)
    settle(probe, probe.model, 512)
    assert before - accuracy(probe.model, kept) > 0.1, "a world where recalibration costs"
    problem = cases.problem(world, forget, selector="class", retain=skewed)
    with contextlib.suppress(Infeasible):
        ssd(problem, SSDConfig())
    trials = [trial for trial in problem.tried if "fraction" in trial]
    assert trials[0]["kept_utility"]
    assert len(trials) > 1
