"""SSD with less than usual: no retained record, no labels."""

import math
from dataclasses import replace

import pytest
import torch

from core import importance, weights
from core.report import no_report
from core.rungs import Case, attempt
from core.unlearners.ssd import SSDConfig, ssd
from tests.core import cases
from tests.core.unlearners import steps
from tests.worlds import CPU, accuracy, trained

KEPT_STATISTICS = {"batch_norm": "running statistics are the parent's"}


def stored(estimator="fisher_persample"):
    return importance.estimate(
        trained(steps.DIGITS), steps.DIGITS.train, estimator, batch_size=32, device=CPU
    )


@pytest.mark.parametrize("selection", ["guarded", "adaptive", "potion"])
def test_stored_importance_does_without_a_retained_record(selection):
    problem = steps.digits_class(importance=stored(), retain=None)
    model = ssd(problem, SSDConfig(selection=selection))
    parent = trained(steps.DIGITS)
    assert not weights.equal(model, parent)
    for name, value in parent.named_buffers():
        assert torch.equal(model.get_buffer(name), value), name
    assert problem.tried[-1] == KEPT_STATISTICS


def test_weights_that_only_the_forget_set_leans_on_are_told():
    kept = stored()
    problem = steps.digits_class(importance=kept)
    ssd(problem, SSDConfig(selection="adaptive"))
    assert not any("foreign_weights" in each for each in problem.tried)
    name = next(iter(kept.values))
    nothing = replace(kept, values={**kept.values, name: torch.zeros_like(kept.values[name])})
    problem = steps.digits_class(importance=nothing)
    ssd(problem, SSDConfig(selection="adaptive"))
    (told,) = (each for each in problem.tried if "foreign_weights" in each)
    forget = importance.estimate(
        trained(steps.DIGITS),
        steps.DIGITS.train.take(steps.THREES),
        "fisher_persample",
        batch_size=32,
        device=CPU,
    )
    assert told["foreign_weights"] == int((forget.values[name] > 0).sum()) > 0


def test_a_rung_without_a_retained_record_runs_to_its_end():
    tuning, judging = cases.halves(steps.DIGITS)
    rows = steps.DIGITS.train.rows[steps.THREES].tolist()
    case = Case(
        parent=trained(steps.DIGITS),
        fresh=steps.DIGITS.fresh,
        forget=steps.DIGITS.train.take(steps.THREES),
        retain=None,
        tuning=tuning,
        judging=judging,
        recipe=None,
        importance=stored(),
        requests={"request": rows},
        selector="class",
        forget_classes=frozenset({3}),
        num_classes=10,
        policy="standard",
        seed=7,
        batch_size=32,
        bn_policy="recalibrate",
        device=CPU,
        deadline=math.inf,
        report=no_report,
    )
    rung, _ = attempt(case, SSDConfig(), 0, 1)
    assert rung.status in {"published", "refused"}, rung.reason
    assert rung.tried[0]["importance"] == "stored"
    assert rung.tried[-1] == KEPT_STATISTICS
    for importance_of, stays in ((None, None), (stored("mas"), None)):
        other = replace(case, importance=importance_of, retain=stays)
        assert attempt(other, SSDConfig(), 0, 1)[0].status == "skipped"


def test_recalibrated_statistics_are_not_said_to_be_kept():
    problem = steps.digits_class()
    ssd(problem, SSDConfig(selection="adaptive"))
    assert KEPT_STATISTICS not in problem.tried


def test_mas_reads_no_label():
    problem = steps.digits_class()
    unlabelled = {
        role: replace(records, labels=torch.full_like(records.labels, -1))
        for role, records in (("forget", problem.forget), ("retain", problem.retain))
    }
    blind = replace(problem, model=trained(steps.DIGITS).requires_grad_(True), **unlabelled)
    config = SSDConfig(estimator="mas", selection="adaptive")
    assert weights.equal(ssd(problem, config), ssd(blind, config))


def test_mas_forgets_a_class_like_an_oracle_from_stored_importance():
    problem, oracle = (
        steps.digits_class(importance=stored("mas")),
        cases.oracle(steps.DIGITS, steps.THREES),
    )
    model = ssd(problem, SSDConfig(estimator="mas", selection="potion"))
    assert problem.tried[0] == {
        "importance": "stored",
        "estimator": "mas",
        "stale": 0,
    }
    assert abs(accuracy(model, problem.forget) - accuracy(oracle, problem.forget)) < 0.2
    assert accuracy(model, problem.retain) > accuracy(oracle, problem.retain) - 0.05


@pytest.mark.parametrize(
    "options",
    [{"selection": "adaptive"}, {"selection": "potion"}, {"estimator": "batch", "alpha": 5}],
)
def test_only_the_guarded_search_needs_a_holdout(options):
    assert SSDConfig().all_needs == ("importance", "holdout")
    assert SSDConfig(**options).all_needs == ("importance",)
