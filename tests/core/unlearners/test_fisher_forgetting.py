"""Fisher forgetting: its Fisher information, the size of its noise, and the rows it may touch."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from core.errors import Infeasible
from core.unlearners.fisher_forgetting import (
    FisherForgettingConfig,
    add_noise,
    fisher,
    fisher_forgetting,
    last_layers,
    variances,
)
from tests.core import cases
from tests.worlds import accuracy, digits_world, gaussian_world, trained

WORLD = gaussian_world(num_train=400, num_holdout=400, hidden=64, epochs=60)
SMALL = cases.small_world()
RECORDS = cases.first(SMALL, 40)
CLASS = SMALL.train.labels == 1
LINEAR = cases.noise_world(num_train=300, num_holdout=10, num_classes=4, noise_dims=5)


def linear_fisher(given):
    """The closed form of softmax regression: mean over x of p (1 - p) x^2."""
    (x, _), *_ = given.retain.batches(10_000)
    with torch.no_grad():
        p = given.model.double()(x.double()).softmax(dim=1)
        given.model.float()
    spread = p * (1 - p)
    return [spread.T @ x.double().square() / len(x), spread.mean(dim=0)]


def test_ff_the_model_form_is_the_closed_form_of_softmax_regression():
    given = cases.problem(LINEAR, cases.first(LINEAR, 50), batch_size=64)
    found = fisher(given, FisherForgettingConfig(estimator="model")).values()
    for value, expected in zip(found, linear_fisher(given), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-9)


def test_ff_the_sampled_form_approaches_it_and_ignores_labels():
    given = cases.problem(LINEAR, cases.first(LINEAR, 50), batch_size=64)
    blind = replace(given, retain=replace(given.retain, labels=given.retain.labels * 0))
    config = FisherForgettingConfig(passes=100)
    found = fisher(blind, config)
    assert all(value.dtype == torch.float64 for value in found.values())
    weight, expected = next(iter(found.values())), linear_fisher(given)[0]
    assert float((weight - expected).abs().sum() / expected.sum()) < 0.1
    once = next(iter(fisher(blind, FisherForgettingConfig()).values()))
    assert float((once - expected).abs().sum()) > float((weight - expected).abs().sum())


def formula(given, information, alpha):
    """The variances as the paper's code has them, spelled out for two linear layers."""
    expected = {}
    for name, value in information.items():
        last = name.startswith("3")
        var = alpha * (1 / (value + 1e-8)).clamp(max=1e2 if last else 1e3)
        if var.ndim > 1:
            var = var.mean(dim=1, keepdim=True).expand(value.shape)
        expected[name] = 10 * var if last or value.ndim == 1 else var
    return expected


def test_ff_the_noise_has_the_variance_of_the_formula_in_every_layer():
    given = cases.problem(SMALL, RECORDS)
    alpha, last = 1e-5, last_layers(given)
    information = fisher(given, FisherForgettingConfig(estimator="model"))
    noise = variances(given, information, alpha, last)
    expected = formula(given, information, alpha)
    before = {name: p.detach().clone() for name, p in given.model.named_parameters()}
    sums = dict.fromkeys(noise, 0.0)
    for seed in range(3000):
        add_noise(replace(given, seed=seed), noise, last)
        for name, p in given.model.named_parameters():
            moved = (p.detach() - before[name]).double()
            sums[name] += float((moved.square() / expected[name]).mean()) / 3000
            p.detach().copy_(before[name])
    assert sums == pytest.approx(dict.fromkeys(noise, 1.0), abs=0.03)


def test_ff_no_class_row_is_touched_for_records():
    given = cases.problem(SMALL, RECORDS)
    parent = trained(SMALL)
    model = fisher_forgetting(given, FisherForgettingConfig(alpha=1e-12))
    for p, before in zip(model.parameters(), parent.parameters(), strict=True):
        assert float((p - before).detach().abs().max()) < 1e-3
    torch.testing.assert_close(model[-1].weight, parent[-1].weight, rtol=0, atol=1e-3)


def test_ff_a_class_request_replaces_its_row_by_noise_and_no_other():
    given = cases.problem(SMALL, CLASS, selector="class")
    parent = trained(SMALL)
    model = fisher_forgetting(given, FisherForgettingConfig(alpha=1e-12))
    before, after = parent[-1], model[-1]
    others = [0, 2, 3]
    torch.testing.assert_close(after.weight[others], before.weight[others], rtol=0, atol=1e-3)
    assert float(before.weight[1].detach().norm()) > 0.5
    assert 0.5e-2 < float(after.weight[1].detach().std()) < 2e-2
    assert abs(float(after.bias[1].detach())) < 0.05


class Alike(nn.Module):
    """As many hidden units as classes, and an unused head registered last."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 4)
        self.body = nn.Linear(10, 4)
        self.unused = nn.Linear(4, 4)

    def forward(self, x):
        return self.head(self.body(x).relu())


def test_the_last_layer_is_the_one_that_runs_last():
    given = cases.problem(SMALL, CLASS, selector="class", model=Alike())
    assert last_layers(given) == [given.model.head]


def test_a_class_without_a_row_of_its_own_is_infeasible():
    given = cases.problem(SMALL, CLASS, selector="class", num_classes=5)
    with pytest.raises(Infeasible, match="row"):
        fisher_forgetting(given, FisherForgettingConfig())


def test_pruned_weights_get_no_noise_and_do_not_raise_the_others():
    given = cases.problem(SMALL, RECORDS)
    name, weight = next((n, p) for n, p in given.model.named_parameters() if p.ndim == 2)
    masks = {name: torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) < 0.5}
    given = replace(given, masks=masks)
    given.keep_masks(given.model)
    information = fisher(given, FisherForgettingConfig())
    noise = variances(given, information, 1e-8, last_layers(given))[name]
    each = 1e-8 * (1 / (information[name] + 1e-8)).clamp(max=1e3)
    for row, mask, found in zip(each, masks[name], noise, strict=True):
        torch.testing.assert_close(found[0], row[mask].mean())
    model = fisher_forgetting(given, FisherForgettingConfig(alpha=1e-4))
    assert not bool(model.get_parameter(name)[~masks[name]].any())


def test_a_class_is_forgotten_as_by_an_oracle_and_the_others_stay():
    world = digits_world(num_records=800, epochs=10)
    threes = world.train.labels == 3
    given = cases.problem(world, threes, selector="class")
    oracle = cases.oracle(world, threes)
    before = accuracy(given.model, given.forget)
    model = fisher_forgetting(given, FisherForgettingConfig())
    assert before - accuracy(oracle, given.forget) > 0.5
    assert abs(accuracy(model, given.forget) - accuracy(oracle, given.forget)) < 0.15
    assert accuracy(model, given.retain) > accuracy(oracle, given.retain) - 0.05


def test_more_noise_costs_more_and_does_not_know_the_records():
    found = []
    for alpha in (1e-6, 1e-3):
        given = cases.problem(WORLD, cases.first(WORLD, 80))
        model = fisher_forgetting(given, FisherForgettingConfig(alpha=alpha))
        found.append((accuracy(model, given.forget), accuracy(model, given.retain)))
    (small_forget, small_retain), (large_forget, large_retain) = found
    assert small_retain > 0.95
    assert large_retain < small_retain - 0.1
    assert abs(large_forget - large_retain) < 0.25
    assert abs(small_forget - small_retain) < 0.1
