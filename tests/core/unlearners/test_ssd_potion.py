"""SSD by a growing fraction: each trial from the parent, until little enough is recognised."""

import pytest
from pydantic import ValidationError

from core import importance, weights
from core.dampening import Dampening
from core.errors import Infeasible
from core.unlearners.ssd import SSDConfig, adaptive_fraction, ssd
from tests.core import cases
from tests.core.unlearners import steps
from tests.worlds import CPU, accuracy, trained


def small_class(**changes):
    mask = steps.SMALL.train.labels == 1
    return cases.problem(steps.SMALL, mask, selector="class", **changes)


def run(problem, **options):
    return ssd(problem, SSDConfig(selection="potion", **options))


def trials(problem):
    return [entry for entry in problem.tried if "forget_accuracy" in entry]


def test_the_fraction_starts_as_the_adaptive_one_and_grows_by_its_factor():
    problem = small_class()
    run(problem, target_accuracy=0.85, growth=1.3)
    found = trials(problem)
    assert len(found) > 2
    start = adaptive_fraction(len(problem.forget), 240)
    expected = [min(1.0, start * 1.3**step) for step in range(len(found))]
    assert [trial["fraction"] for trial in found] == pytest.approx(expected)
    size = sum(p.numel() for p in problem.model.parameters())
    assert [t["selected"] for t in found] == [max(1, round(f * size)) for f in expected]


def test_it_stops_at_the_first_trial_that_reaches_its_share_of_the_parent_s_accuracy():
    problem = small_class()
    parent = accuracy(problem.model, problem.forget)
    model = run(problem, target_accuracy=0.85)
    found = trials(problem)
    assert all(trial["target"] == pytest.approx(0.85 * parent) for trial in found)
    assert [trial["forgot"] for trial in found] == [False] * (len(found) - 1) + [True]
    assert accuracy(model, problem.forget) <= 0.85 * parent


def test_every_trial_starts_from_the_parent():
    full, part = (
        importance.estimate(
            trained(steps.SMALL), records, "fisher_persample", batch_size=256, device=CPU, seed=7
        )
        for records in (steps.SMALL.train, small_class().forget)
    )
    problem = small_class(importance=full)
    model = run(problem, target_accuracy=0.85)
    found = trials(problem)
    assert len(found) > 1
    expected = trained(steps.SMALL)
    Dampening(expected, full.values, part.values, 1.0).select_top(found[-1]["selected"])
    assert weights.equal(model, expected)


def test_a_class_goes_as_from_an_oracle_and_the_others_stay():
    problem, oracle = steps.digits_class(), cases.oracle(steps.DIGITS, steps.THREES)
    model = run(problem)
    assert abs(accuracy(model, problem.forget) - accuracy(oracle, problem.forget)) < 0.2
    assert accuracy(model, problem.retain) > accuracy(oracle, problem.retain) - 0.05


def test_it_gives_up_after_the_trials_it_was_given():
    problem = steps.small()
    with pytest.raises(Infeasible):
        run(problem, target_accuracy=0.0, max_growths=3)
    assert len(trials(problem)) == 3


def test_it_gives_up_once_every_weight_was_tried():
    problem = steps.small()
    with pytest.raises(Infeasible):
        run(problem, lam=10.0, growth=2.0)  # beyond N / n_f every factor is one
    assert len(trials(problem)) < 12
    assert trials(problem)[-1]["fraction"] <= 1


@pytest.mark.parametrize(
    "options", [{"growth": 1.0}, {"target_accuracy": 1.0}, {"max_growths": 0}, {"alpha": 2.0}]
)
def test_options_are_bounded(options):
    with pytest.raises(ValidationError):
        SSDConfig(selection="potion", estimator="batch", **options)
