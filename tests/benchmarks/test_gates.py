"""The oracles' prediction interval, in closed form."""

import math

import pytest

from benchmarks.gates import Interval, expected, kind, left_out


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
