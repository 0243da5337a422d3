"""A parent that was pruned: approximate rungs keep its zeros, exact ones do not, and all say so."""

from dataclasses import replace

import pytest
import torch

from core import weights
from core.audits import DENSE_ORACLE, audits, run_chosen
from core.masks import PRUNED_FROM, apply_masks, holds, layer_weights, of_pruned, share_of_zeros
from core.rungs import attempt
from core.unlearners import unlearners
from tests.core import cases
from tests.core.test_rung_evidence import case, world
from tests.worlds import trained

KEPT = "the zeros of the parent are kept, 90 % of its layer weights"


def pruned(share=0.9):
    model = trained(world())
    with torch.no_grad():
        for weight in layer_weights(model).values():
            least = weight.abs().flatten().kthvalue(max(1, round(share * weight.numel()))).values
            weight.masked_fill_(weight.abs() <= least, 0)
    return model


def tried(monkeypatch, options, **changes):
    """Try a rung on a pruned parent; return the rung, and the model whether published or not."""
    made = []
    entry = unlearners[options["name"]]

    def look(problem, config):
        made.append(entry.run(problem, config))
        return made[-1]

    monkeypatch.setitem(unlearners._entries, entry.name, replace(entry, run=look))
    rung, _ = attempt(case(parent=pruned(), **changes), unlearners.parse(options), 0, 1)
    return rung, made[-1]


@pytest.mark.parametrize(
    "options",
    [
        {"name": "fine_tune", "epochs": 2},
        {"name": "fine_tune", "epochs": 2, "schedule": "one_cycle"},
        {"name": "neggrad_plus", "epochs": 1},
        {"name": "prune_first", "prune": {"name": "zeros"}},
    ],
)
def test_an_approximate_rung_keeps_exactly_the_zeros_and_says_so(options, monkeypatch):
    rung, model = tried(monkeypatch, options)
    assert holds(model, of_pruned(pruned()))
    assert not weights.equal(model, pruned())
    assert rung.reason.endswith(KEPT)


def test_retraining_takes_no_mask_that_the_forget_set_had_a_part_in(monkeypatch):
    rung, model = tried(monkeypatch, {"name": "retrain"})
    assert not of_pruned(model)
    assert "not kept, 90 % of its layer weights, 0 % now: the forget set had" in rung.reason
    _, other = tried(monkeypatch, {"name": "retrain"})
    dense, of_dense = attempt(case(), unlearners.parse({"name": "retrain"}), 0, 1)
    assert weights.equal(model, other)
    assert weights.equal(model, of_dense)
    assert "zeros" not in dense.reason


def test_a_new_mask_is_not_cut_by_that_of_the_parent(monkeypatch):
    new = {"name": "prune_first", "prune": {"name": "synflow", "sparsity": 0.5}}
    rung, model = tried(monkeypatch, {**new, "then": {"name": "retrain"}})
    assert rung.exact
    assert "not kept, 90 % of its layer weights, 36 % now" in rung.reason
    assert share_of_zeros(model) == pytest.approx(0.36, abs=0.01)


def test_a_dense_parent_has_no_mask():
    assert not of_pruned(trained(world()))
    assert not of_pruned(pruned(PRUNED_FROM / 2))
    assert of_pruned(pruned(2 * PRUNED_FROM))


def test_rounding_to_eight_bits_is_no_pruning():
    model = trained(world())
    with torch.no_grad():
        for weight in layer_weights(model).values():
            step = weight.abs().max() / 127
            weight.copy_((weight / step).round() * step)
            assert 0 < (weight == 0).float().mean() < PRUNED_FROM
    assert not of_pruned(model)


def test_zeros_of_the_classifier_alone_are_those_of_dead_features():
    model = trained(world())
    *_, last = layer_weights(model).items()
    apply_masks(model, {last[0]: torch.zeros_like(last[1]).bool()})
    assert not of_pruned(model)


@pytest.mark.parametrize("audit", ["oracle_distance", "avg_gap"])
def test_a_dense_oracle_of_a_pruned_parent_is_called_so(audit):
    forget = cases.first(world(), 40)
    oracle = cases.oracle(world(), forget)
    for before, reason in ((pruned(), DENSE_ORACLE), (trained(world()), None)):
        evidence = cases.evidence(world(), before, forget, oracles=(oracle,), before=before)
        found = run_chosen(evidence, [audits[audit].config()])
        assert {finding.reason for finding in found} == {reason}
