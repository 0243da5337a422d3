"""Sentinels: each can be run, and nothing but a gate's refusal counts as one."""

import pytest

from benchmarks import study
from benchmarks.sentinels import REGIME, SENTINELS, rows
from core.ladder import parse


def cell(**rung):
    base = {"status": "refused", "reason": "failed: utility", "forget_accuracy": 0.01, "auc": None}
    gates = {"utility": ["failed", 0.08, 1.0]}
    return {"sentinel": "dampened-class", "rung": base | {"gates": gates} | rung}


def test_each_can_be_run():
    for sentinel in SENTINELS.values():
        assert sentinel.forget in study.forget_sets(REGIME)
        parse(sentinel.config)


@pytest.mark.parametrize(
    ("rung", "verdict"),
    [
        ({}, "met"),
        ({"status": "published"}, "**missed**"),
        ({"status": "errored", "reason": "out_of_time: spent", "gates": {}}, "**missed**"),
        ({"reason": "inconclusive: utility"}, "**missed**"),
    ],
)
def test_only_a_failed_gate_refuses(rung, verdict):
    [row] = rows(cell(**rung))
    assert row.verdict == verdict


def test_the_row_tells_what_was_measured():
    [row] = rows(cell())
    expected = "refused, failed: utility; forget accuracy 0.010; accuracy lost 8.0 points"
    assert row.measured == expected
