"""Fine-tuning: the retain set alone, and what becomes of batch norm."""

import pytest
import torch
from torch import nn

from core.unlearners.fine_tune import FineTuneConfig, fine_tune
from tests.core import cases
from tests.worlds import accuracy


def test_it_forgets_in_the_direction_of_the_oracle():
    world = cases.small_world()
    forget = cases.first(world, 80)
    given = cases.problem(world, forget)
    oracle = accuracy(cases.oracle(world, forget), given.forget)
    before = accuracy(given.model, given.forget)
    after = accuracy(fine_tune(given, FineTuneConfig(epochs=30, lr=0.2)), given.forget)
    assert abs(after - oracle) < abs(before - oracle)


def test_the_retain_set_stays_learned():
    world = cases.small_world()
    given = cases.problem(world, cases.first(world, 80))
    assert accuracy(fine_tune(given, FineTuneConfig()), given.retain) > 0.95


def batch_norm_of(policy):
    world = cases.noise_world(num_train=400, num_holdout=400, noise_dims=20, batch_norm=True)
    given = cases.problem(world, cases.first(world, 100), bn_policy=policy)
    layer = next(m for m in given.model.modules() if isinstance(m, nn.BatchNorm1d))
    before = layer.running_mean.clone()
    linear = next(m for m in given.model.modules() if isinstance(m, nn.Linear))
    model = fine_tune(given, FineTuneConfig(epochs=1))
    with torch.no_grad():
        truth = linear(given.retain.images).mean(0)
    del model
    return before, layer.running_mean, truth


def test_frozen_statistics_stay():
    before, after, _ = batch_norm_of("frozen")
    assert torch.equal(before, after)


@pytest.mark.parametrize(("policy", "exact"), [("tracked", False), ("recalibrate", True)])
def test_recalibrated_statistics_are_those_of_the_retain_set(policy, exact):
    before, after, truth = batch_norm_of(policy)
    assert not torch.equal(before, after)
    assert torch.allclose(after, truth, atol=1e-4) is exact
