"""Selective synaptic dampening: a class fades and the rest stays; every trial is on record."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from core import batchnorm, importance, weights
from core.dampening import Dampening
from core.errors import Infeasible, MissingEvidence
from core.unlearners.ssd import MOST_SELECTED, SSDConfig, adaptive_fraction, ssd
from tests.core import cases
from tests.worlds import CPU, accuracy, digits_world, trained

DIGITS = digits_world(num_records=800, epochs=10)
THREES = DIGITS.train.labels == 3

SMALL = cases.small_world()
FORGET = cases.first(SMALL, 24)

NORMED = cases.noise_world(num_train=400, num_holdout=400, noise_dims=10, batch_norm=True)
NORMED_FORGET = NORMED.train.labels == 2


def class_problem(**changes):
    return cases.problem(DIGITS, THREES, selector="class", **changes)


def small_problem(**changes):
    return cases.problem(SMALL, FORGET, **changes)


def stored(world, estimator="fisher_persample", batch_size=256):
    return importance.estimate(
        trained(world), world.train, estimator, batch_size=batch_size, device=CPU, seed=7
    )


def trials(problem):
    return [entry for entry in problem.tried if "forget_accuracy" in entry]


def changed(model, parent):
    pairs = zip(model.parameters(), parent.parameters(), strict=True)
    return sum(int((a != b).sum()) for a, b in pairs)


@pytest.mark.parametrize("options", [{}, {"selection": "adaptive"}], ids=["guarded", "adaptive"])
def test_a_class_is_forgotten_as_by_an_oracle_and_the_others_stay(options):
    problem = class_problem()
    parent, oracle = trained(DIGITS), cases.oracle(DIGITS, THREES)
    model = ssd(problem, SSDConfig(**options))
    for role, slack in (("forget", 0.15), ("retain", 0.05)):
        records = getattr(problem, role)
        assert abs(accuracy(model, records) - accuracy(oracle, records)) < slack, role
    assert accuracy(parent, problem.forget) - accuracy(oracle, problem.forget) > 0.5


@pytest.mark.parametrize(
    "options",
    [
        {"alpha": 10.0},
        {"alpha": 10.0, "estimator": "mas"},
        {"alpha": 10.0, "estimator": "batch", "selection": "guarded"},
        {"alpha": 10.0, "estimator": "batch", "selection": "adaptive"},
        {"estimator": "batch", "selection": "alpha"},
    ],
)
def test_alpha_is_for_the_batch_estimator_and_for_its_own_selection(options):
    with pytest.raises(ValidationError, match="alpha"):
        SSDConfig(**options)


def test_alpha_selects_where_the_ratio_exceeds_it():
    problem = small_problem(batch_size=32)
    config = SSDConfig(alpha=2.0, estimator="batch")
    assert config.chosen_selection == "alpha"
    full = stored(SMALL, "fisher_batch", 32)
    part = importance.estimate(
        trained(SMALL), problem.forget, "fisher_batch", batch_size=32, device=CPU, seed=7
    )
    expected = sum(int((part.values[n] > 2 * full.values[n]).sum()) for n in full.values)
    model = ssd(replace(problem, importance=full), config)
    assert problem.tried[-1] == {"alpha": 2.0, "selected": expected}
    assert 0 < changed(model, trained(SMALL)) <= expected


def test_the_guarded_search_keeps_every_trial_and_makes_at_most_eight():
    problem = class_problem()
    ssd(problem, SSDConfig())
    found = trials(problem)
    assert 1 <= len(found) <= 8
    assert len({trial["fraction"] for trial in found}) == len(found)
    assert all(0 < trial["fraction"] <= MOST_SELECTED for trial in found)
    for trial in found:
        assert trial["target"] == pytest.approx(0.1)
        assert trial["forgot"] == (trial["forget_accuracy"] <= trial["target"])
        assert trial["kept_utility"] == (trial["utility_drop"] <= 0.01)
    assert json.loads(json.dumps(problem.tried)) == problem.tried


def test_the_search_stops_at_the_trials_it_was_given():
    problem = class_problem()
    ssd(problem, SSDConfig(max_trials=3))
    assert len(trials(problem)) == 3


def test_the_result_is_the_last_trial_that_forgot_and_kept_utility():
    full = stored(DIGITS)
    problem = class_problem(importance=full)
    model = ssd(problem, SSDConfig())
    best = [t for t in trials(problem) if t["forgot"] and t["kept_utility"]][-1]
    part = importance.estimate(
        trained(DIGITS), problem.forget, "fisher_persample", batch_size=256, device=CPU, seed=7
    )
    expected = trained(DIGITS)
    Dampening(expected, full.values, part.values, 1.0).select_top(best["selected"])
    batchnorm.recalibrate(expected, problem.retain, 256, CPU, 2048)
    assert weights.equal(model, expected)


def test_nothing_feasible_is_said_with_all_trials_on_record():
    problem = class_problem()
    with pytest.raises(Infeasible):
        ssd(problem, SSDConfig(lam=10.0))  # beyond the largest ratio: every factor is one
    assert len(trials(problem)) == 8
    assert not any(trial["forgot"] for trial in trials(problem))


def test_a_search_that_breaks_the_model_is_no_success():
    problem = class_problem()
    with pytest.raises(Infeasible):
        ssd(problem, SSDConfig(lam=0.0, estimator="mas", max_utility_drop=0.0))
    assert not any(trial["forgot"] and trial["kept_utility"] for trial in trials(problem))


def test_the_guarded_search_needs_tuning_records():
    with pytest.raises(MissingEvidence, match="tuning"):
        ssd(class_problem(tuning=None), SSDConfig())


def test_the_adaptive_selection_takes_its_share():
    problem = small_problem()
    model = ssd(problem, SSDConfig(selection="adaptive"))
    fraction = adaptive_fraction(24, 240)
    size = sum(p.numel() for p in model.parameters())
    assert fraction == pytest.approx(0.02398, abs=1e-5)
    assert problem.tried[-1] == {"fraction": fraction, "selected": round(fraction * size)}
    assert 0 < changed(model, trained(SMALL)) <= round(fraction * size)


@pytest.mark.parametrize(("estimator", "label_free"), [("mas", True), ("persample", False)])
def test_mas_alone_needs_no_labels(estimator, label_free):
    problem = small_problem()
    other = replace(
        problem,
        **{
            role: replace(records, labels=(records.labels + 1) % 4)
            for role, records in (("forget", problem.forget), ("retain", problem.retain))
        },
        model=trained(SMALL),
    )
    config = SSDConfig(estimator=estimator, selection="adaptive")
    assert weights.equal(ssd(problem, config), ssd(other, config)) == label_free


@pytest.mark.parametrize(
    ("estimator", "made_with", "batch_size", "fits"),
    [
        ("persample", "fisher_persample", 256, True),
        ("persample", "fisher_persample", 16, True),
        ("persample", "fisher_batch", 256, False),
        ("batch", "fisher_batch", 256, True),
        ("batch", "fisher_batch", 16, False),
        ("mas", "mas", 256, True),
        ("mas", "fisher_persample", 256, False),
    ],
)
def test_stored_importance_is_used_where_it_fits(estimator, made_with, batch_size, fits):
    made = stored(SMALL, made_with, batch_size)
    huge = replace(made, values={name: value * 1e9 + 1 for name, value in made.values.items()})
    problem = small_problem(importance=huge)
    model = ssd(problem, SSDConfig(estimator=estimator, selection="adaptive"))
    assert problem.tried[0]["importance"] == ("stored" if fits else "measured")
    assert weights.equal(model, trained(SMALL)) == fits  # such importance dampens nothing


def test_stored_importance_does_without_the_retain_set():
    config = SSDConfig(selection="adaptive")
    model = ssd(small_problem(importance=stored(SMALL), retain=None), config)
    expected = ssd(small_problem(), config)
    for name, value in expected.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), value, rtol=1e-4, atol=1e-6)
    with pytest.raises(MissingEvidence, match="importance"):
        ssd(small_problem(importance=None, retain=None), config)


def run_normed(policy):
    problem = cases.problem(NORMED, NORMED_FORGET, selector="class", bn_policy=policy)
    return ssd(problem, SSDConfig(selection="adaptive"))


@pytest.mark.parametrize("policy", ["frozen", "tracked"])
def test_statistics_stay_unless_they_are_recalibrated(policy):
    model, parent = run_normed(policy), trained(NORMED)
    assert changed(model, parent) > 0
    for name, value in parent.named_buffers():
        assert torch.equal(model.get_buffer(name), value), name


def test_recalibrated_statistics_are_those_of_the_retain_set_alone():
    model, frozen = run_normed("recalibrate"), run_normed("frozen")
    assert changed(model, frozen) == 0
    assert not torch.equal(model[2].running_mean, frozen[2].running_mean)
    again = copy.deepcopy(model)
    batchnorm.recalibrate(again, NORMED.train.take(~NORMED_FORGET), 256, CPU, 2048)
    assert weights.equal(model, again)


def test_trials_are_judged_with_the_statistics_of_the_policy():
    looked = []
    for policy in ("frozen", "recalibrate"):
        problem = cases.problem(NORMED, NORMED_FORGET, selector="class", bn_policy=policy)
        ssd(problem, SSDConfig(max_utility_drop=1.0))
        looked.append(trials(problem)[0]["utility_drop"])
    assert looked[0] != looked[1]
