"""The oracles' prediction interval, in closed form, and what the page says of a whole regime."""

import math

import pytest
import torch

from benchmarks import gates, study
from benchmarks.gate_tables import (
    Interval,
    agreement,
    expected,
    fallback,
    kind,
    left_out,
    of_cell,
    parent_rows,
    powerless,
    reach,
    without_audits,
)
from core.data import Records
from core.findings import Rung
from core.recipe import SGD, Recipe


def oracles(*values):
    return [{"forget_accuracy": value, "auc": value} for value in values]


FOUND = {
    "class3": oracles(0.4, 0.6),
    "class5": oracles(0.5, 0.5),
    "random-100": oracles(0.0, 1.0),
}
T_OF_TWO = 9.924843
"""99.5 % quantile of Student's t with two degrees of freedom."""


def test_sets_of_like_size_share_their_spread():
    interval = expected(FOUND, "class5", "auc")
    reach = T_OF_TWO * math.sqrt(0.02 / 2) * math.sqrt(1 + 1 / 2)
    assert (interval.low, interval.high) == pytest.approx((0.5 - reach, 0.5 + reach), rel=1e-6)


def test_nothing_is_expected_from_too_few_oracles():
    assert expected({"class3": oracles(0.4)}, "class3", "auc") is None
    assert expected(FOUND, "class9", "auc") is None


def test_an_oracle_is_held_against_the_others_alone():
    held = list(left_out({"class3": oracles(0.5, 0.5, 0.9)}))
    assert held == [("class3", is_inside) for is_inside in (True, True, True, True, False, False)]


def test_kinds():
    found = [kind(name) for name in ("class3", "class5", "random-100")]
    assert found == ["class", "class", "random"]


def test_two_points_of_slack():
    assert Interval(0.4, 0.6).holds(0.6199)
    assert not Interval(0.4, 0.6).holds(0.6201)


def cell(name, *, auc=0.5, cpu=20.0, seconds=(20.0,), published="fine_tune"):
    rungs = [{"seconds": value, "forget_accuracy": 0.5, "auc": auc} for value in seconds]
    spent = {"seconds": 2 * cpu, "cpu_seconds": cpu}
    return {"set": name, "published": published, **spent, "rungs": rungs}


def trained(name):
    return {name: [figures | {"cpu_seconds": 100.0} for figures in oracles(0.5, 0.5, 0.5)]}


def verdicts(rows):
    return [(row.measured, row.verdict) for row in rows]


@pytest.fixture
def sets(monkeypatch):
    """Give a regime so many forget sets; return their names."""

    def named(count):
        names = [f"class{at}" for at in range(count)]
        monkeypatch.setattr(study, "forget_sets", lambda _: dict.fromkeys(names))
        return names, {key: value for name in names for key, value in trained(name).items()}

    return named


def test_published_values_outside_are_counted_and_one_in_twenty_may_be(sets):
    names, found = sets(10)
    off = cell("class0", auc=0.9)
    rest = [cell(name) for name in names[1:]]
    published, left = agreement("memorised", [off, *rest], found)
    assert (published.measured, published.verdict) == ("1 of 20", "met")
    assert (left.measured, left.verdict) == ("0 of 60", "met")
    fewer = agreement("memorised", [off, *rest[:3]], found)
    assert verdicts(fewer)[0] == ("1 of 8", "**missed**")
    refused = agreement("memorised", [cell("class0", published=None)], {})
    assert verdicts(refused) == [("none to judge", "-")] * 2


def test_oracles_that_disagree_are_told():
    _, left = agreement("memorised", [], {"class3": oracles(0.5, 0.5, 0.9)})
    assert (left.measured, left.verdict) == ("2 of 6", "**missed**")


def test_a_pass_that_costs_too_much_is_no_reach(sets):
    names, found = sets(2)
    soon = cell(names[0], cpu=25.0, seconds=(40.0,))
    late = cell(names[1], cpu=60.0, seconds=(30.0, 30.0))
    assert verdicts(reach("memorised", [soon, late], found)) == [
        ("2 of 2", "met"),
        ("1 of 2; they took 0.25 to 0.60", "met"),
        ("1 of 2; they took 0.20 to 0.30", "met"),
    ]
    slow = [cell(name, cpu=26.0, seconds=(52.0,)) for name in names]
    assert [row.verdict for row in reach("memorised", slow, found)] == ["met", *["**missed**"] * 2]


def test_sets_without_a_rung_to_try_are_told():
    skipped, tried = {"status": "skipped"}, {"status": "refused"}
    rungs = [[], [skipped], [tried, skipped], [tried]]
    row = powerless("regularised", [{"rungs": each} for each in rungs])
    assert (row.measured, row.verdict) == ("2 of 4", "-")


def exact_cell(status):
    rung = {"unlearner": {"name": "retrain"}, "status": status, "reason": "failed: drift"}
    rung["gates"] = {"utility": ["passed", 0.0, 1.0], "drift": ["failed", 9.0, None]}
    published = "retrain" if status == "published" else None
    found = {"regime": "memorised", "set": "class0", "published": published, "rungs": [rung]}
    return {"memorised-class0-exact": found | {"cpu_seconds": 110.0}}


@pytest.mark.parametrize(
    ("retrained", "measured", "counted", "verdict"),
    [
        ({}, "not run here", "0 of 1, 1 not run here", "-"),
        (
            exact_cell("published"),
            "published: utility passed, drift failed; 1.10 of a retraining",
            "1 of 1",
            "met",
        ),
        (
            exact_cell("refused"),
            "refused: utility passed, drift failed; 1.10 of a retraining",
            "0 of 1",
            "**missed**",
        ),
    ],
)
def test_nothing_was_retrained_that_no_cell_says(retrained, measured, counted, verdict):
    refused = cell("class0", published=None) | {"regime": "memorised", "rungs": []}
    _, row = of_cell(refused, trained("class0"), retrained)
    assert (row.what, row.measured, row.verdict) == ("memorised class0: retrain", measured, verdict)
    cells = [refused, cell("class1")]
    assert verdicts(fallback("memorised", cells, retrained)) == [(counted, verdict)]
    assert verdicts(fallback("memorised", cells[1:], {})) == [("0 of 0", "-")]


@pytest.mark.parametrize("exact", [False, True])
def test_exact_rungs_are_tried_apart(monkeypatch, exact):
    numbers = torch.arange(10_000)
    records = Records(images=torch.zeros(10_000, 1), labels=numbers % 10, rows=numbers)
    recipe = Recipe(epochs=1, optimizer=SGD(lr=0.1))
    world = study.World("tiny", records, records, records, recipe)
    monkeypatch.setattr(study, "world", lambda *_: world)
    monkeypatch.setattr(study, "parent", lambda *_: torch.nn.Linear(1, 10))
    monkeypatch.setattr(gates, "_importance", lambda *_: None)
    tried = []

    def attempt(case, config, index, of, *, exact_follows):
        tried.append((config.is_exact, exact_follows))
        status = "published" if config.is_exact else "refused"
        named = {"name": config.name}
        rung = Rung(index=index, unlearner=named, exact=config.is_exact, status=status, reason="")
        return rung, case.parent if config.is_exact else None

    monkeypatch.setattr(gates, "attempt", attempt)
    found = gates.run(None, "memorised", "class3", exact=exact)
    assert found["published"] == ("retrain" if exact else None)
    assert set(tried) == {(exact, not exact)}


def test_cpu_seconds_of_the_unlearners_come_before_an_estimate(sets):
    [name], found = sets(1)
    timed = cell(name, cpu=60.0, seconds=(90.0, 30.0))
    assert without_audits(timed, found) == pytest.approx(0.6)
    for rung, spent in zip(timed["rungs"], (10.0, 5.0), strict=True):
        rung["cpu_seconds"] = spent
    assert without_audits(timed, found) == pytest.approx(0.15)


def test_a_clock_counts_every_phase_apart(monkeypatch):
    now = iter([0.0, 1.0, 3.0, 6.0, 10.0, 15.0])
    monkeypatch.setattr(gates.time, "process_time", lambda: next(now))
    clock = gates.Clock()
    for phase in ("auditing", "unlearning", "auditing"):
        clock(phase, 0.0, None, None, {})
    assert (clock.of("unlearning"), clock.of("publishing")) == (3.0, 0.0)


def test_what_is_not_measured_leaves_the_verdict_open(sets):
    names, found = sets(4)
    refused = [cell(name, published=None) for name in names]
    assert [row.verdict for row in reach("memorised", refused[:2], found)] == ["-"] * 3
    assert [row.verdict for row in reach("memorised", refused[:3], found)] == ["**missed**"] * 3


@pytest.mark.parametrize(
    ("regime", "train", "test", "verdict"),
    [
        ("regularised", 0.65, 0.61, "met"),
        ("regularised", 0.67, 0.61, "**missed**"),
        ("memorised", 0.999, 0.6, "met"),
        ("memorised", 0.99, 0.6, "**missed**"),
        ("shipped", 1.0, 0.768, "met"),
        ("shipped", 1.0, 0.7, "**missed**"),
    ],
)
def test_a_parent_has_to_be_what_its_regime_is_for(regime, train, test, verdict):
    [row] = parent_rows(regime, {"train_accuracy": train, "test_accuracy": test})
    assert row.verdict == verdict


def test_a_parent_that_is_not_described_gets_no_verdict():
    assert verdicts(parent_rows("regularised", None)) == [("not described yet", "-")]
