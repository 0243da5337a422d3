"""Tuning without an oracle: what is tried, how it is scored, and what is kept."""

import dataclasses

import pytest
from pydantic import ValidationError

from core import weights
from core.determinism import seed_everything
from core.errors import Diverged, Infeasible, MissingEvidence, OutOfTime
from core.methods import METHODS, Method
from core.situation import Situation
from core.unlearners import unlearners
from core.unlearners._guard import ALLOWANCE, Guard
from core.unlearners.tuned import RATES_OF_ADAMW, RATES_OF_SGD, TunedConfig, tuned
from tests.core.unlearners import steps
from tests.worlds import accuracy

ROUNDS = {"name": "eupmu", "epochs": 2}


def options(**changes):
    return unlearners.parse({"name": "tuned", "unlearner": ROUNDS, **changes})


def alone(problem, value, unlearner=ROUNDS):
    """What the unlearner makes of the parent with one value."""
    seed_everything(problem.seed)
    config = unlearners.parse(unlearner | {"lr": value})
    return unlearners[config.name].run(problem, config)


def scores(problem):
    return {t["lr"]: t["score"] for t in problem.tried if "score" in t}


def test_the_rule_for_records_is_three_distances_from_the_parent():
    values = (0.001, 0.05, 0.5)
    problem = steps.small()
    model = tuned(problem, options(values=values))
    parent = steps.small()
    never_seen = Guard(parent, 1.0).measure(parent.model).target - ALLOWANCE
    before = [accuracy(parent.model, r) for r in (parent.retain, parent.tuning)]
    expected = {}
    for value in values:
        fresh = steps.small()
        after = alone(fresh, value)
        now = [accuracy(after, r) for r in (fresh.retain, fresh.tuning)]
        expected[value] = sum(abs(a - b) for a, b in zip(before, now, strict=True))
        expected[value] += abs(accuracy(after, fresh.forget) - never_seen)
    assert scores(problem) == pytest.approx(expected, abs=1e-6)
    assert len({*expected.values()}) == 3
    best = min(expected, key=expected.__getitem__)
    assert weights.equal(model, alone(steps.small(), best))


@pytest.mark.parametrize("values", [(0.3, 0.001), (0.001, 0.3)])
def test_the_order_of_the_values_does_not_matter(values):
    one, other = steps.small(), steps.small()
    first = tuned(one, options(values=values))
    assert weights.equal(first, tuned(other, options(values=values[::-1])))
    assert scores(one) == scores(other)


def test_for_a_class_most_forgotten_and_then_most_utility():
    problem = steps.digits_class()
    unlearner = {"name": "neggrad_plus", "epochs": 2, "stop": False}
    model = tuned(problem, options(unlearner=unlearner, values=[1e-6, 0.01, 0.03, 1.0]))
    found = {t["lr"]: t for t in problem.tried if "score" in t}
    assert found[1e-6]["score"] == min(t["score"] for t in found.values())
    assert not found[1e-6]["forgot"]
    forgot = [value for value, t in found.items() if t["forgot"]]
    best = min(forgot, key=lambda value: found[value]["score"])
    assert weights.equal(model, alone(steps.digits_class(), best, unlearner))


def test_a_class_that_no_value_forgets_fades_as_far_as_one_can():
    problem = steps.digits_class()
    unlearner = {"name": "neggrad_plus", "epochs": 1, "stop": False}
    model = tuned(problem, options(unlearner=unlearner, values=[1e-6, 0.002]))
    found = [t for t in problem.tried if "score" in t]
    assert not any(t["forgot"] for t in found)
    assert found[1]["forget_accuracy"] < found[0]["forget_accuracy"]
    assert weights.equal(model, alone(steps.digits_class(), 0.002, unlearner))


def failing(monkeypatch, error, at):
    """Let the unlearner fail with one value."""
    entry = unlearners["eupmu"]

    def run(problem, config):
        if config.lr == at:
            raise error
        return entry.run(problem, config)

    monkeypatch.setitem(unlearners._entries, "eupmu", dataclasses.replace(entry, run=run))


def test_a_trial_that_fails_is_told_and_the_others_go_on(monkeypatch):
    failing(monkeypatch, Diverged("too far"), at=0.5)
    problem = steps.small()
    model = tuned(problem, options(values=[0.5, 0.01]))
    assert {"lr": 0.5, "failed": "diverged: too far"} in problem.tried
    assert weights.equal(model, alone(steps.small(), 0.01))
    with pytest.raises(Infeasible):
        tuned(steps.small(), options(values=[0.5]))


def test_no_time_is_no_failed_trial(monkeypatch):
    failing(monkeypatch, OutOfTime("over"), at=0.5)
    with pytest.raises(OutOfTime):
        tuned(steps.small(), options(values=[0.5, 0.01]))


def test_trials_stay_within_their_passes():
    problem = steps.small()
    situation = Situation(
        selector="records",
        num_forget=len(problem.forget),
        num_train=len(problem.forget) + len(problem.retain),
        has_recipe=True,
        has_holdout=True,
    )
    each = METHODS["eupmu"].cost(situation, ROUNDS)
    tuned(problem, options(values=[0.01, 0.02, 0.03], max_passes=2.5 * each))
    assert [*scores(problem)] == [0.01, 0.02]
    assert problem.tried[-1]["lr"] == 0.03
    assert "not_tried" in problem.tried[-1]
    assert [t["passes"] for t in problem.tried if "score" in t] == pytest.approx([each] * 2)
    with pytest.raises(Infeasible):
        tuned(steps.small(), options(max_passes=each / 2))


def test_a_budget_that_nobody_can_keep_is_no_budget(monkeypatch):
    monkeypatch.setitem(METHODS, "eupmu", Method())
    with pytest.raises(Infeasible, match="nobody knows the cost of eupmu"):
        tuned(steps.small(), options())


def test_what_the_unlearner_tried_is_kept_with_its_value():
    problem = steps.small()
    tuned(problem, options(values=[0.01]))
    of_trial = [t["trial"] for t in problem.tried if "trial" in t]
    fresh = steps.small()
    alone(fresh, 0.01)
    assert of_trial == fresh.tried != []


@pytest.mark.parametrize(
    ("optimizer", "values"), [("sgd", RATES_OF_SGD), ("adamw", RATES_OF_ADAMW)]
)
def test_left_out_values_suit_the_recipe(optimizer, values):
    problem = steps.small()
    raw = problem.recipe.model_dump() | {"optimizer": {"name": optimizer, "lr": 0.01}}
    problem = dataclasses.replace(problem, recipe=type(problem.recipe).model_validate(raw))
    tuned(problem, options())
    assert tuple(scores(problem)) == values


@pytest.mark.parametrize("missing", ["retain", "tuning"])
def test_it_needs_what_the_rule_looks_at(missing):
    with pytest.raises(MissingEvidence):
        tuned(steps.small(**{missing: None}), options())


def test_another_option_than_the_rate():
    problem = steps.small()
    tuned(problem, options(option="epochs", values=[1, 3]))
    assert [t["epochs"] for t in problem.tried if "score" in t] == [1, 3]


@pytest.mark.parametrize(
    ("wrong", "field", "said"),
    [
        ({"unlearner": {"name": "retrain"}}, "unlearner", "exact"),
        ({"unlearner": {"name": "prune_first"}}, "unlearner", "does not match"),
        ({"unlearner": {"name": "tuned"}}, "unlearner", "does not match"),
        ({"option": "colour"}, "option", "eupmu has no option colour"),
        ({"option": "name"}, "option", "no option name"),
        ({"option": "epochs"}, "values", "which values of epochs"),
        ({"option": "epochs", "values": [1.5]}, "values", "1.5"),
        ({"values": [0.1, 2]}, "values", "2: Input should be less than or equal to 1"),
        ({"values": []}, "values", "at least 1"),
        ({"values": [0.1] * 9}, "values", "at most 8"),
        ({"max_passes": 0}, "max_passes", "greater than 0"),
    ],
)
def test_what_does_not_fit_is_refused_where_it_is(wrong, field, said):
    with pytest.raises(ValidationError) as caught:
        options(**wrong)
    (error,) = caught.value.errors()
    assert error["loc"][:2] == ("tuned", field)
    assert said in error["msg"]


def test_needs_are_those_of_the_rule_and_of_the_unlearner():
    assert options().all_needs == ("retain", "holdout")
    assert options(unlearner={"name": "unsir"}, option="lr").all_needs == (
        "retain",
        "holdout",
        "class",
        "images",
    )


def test_the_schema_offers_every_approximate_and_plain_unlearner():
    offered = TunedConfig.model_json_schema()["properties"]["unlearner"]["discriminator"]["mapping"]
    assert {"eupmu", "ssd", "fine_tune"} <= set(offered)
    assert not {"tuned", "prune_first", "sisa", "ridge_head"} & set(offered)
