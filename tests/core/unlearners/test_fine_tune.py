"""Fine-tuning: the retain set alone, and what becomes of batch norm."""

from functools import partial

import pytest
import torch
from torch import nn

from core.measures import margin, membership_auc
from core.scores import gather
from core.unlearners.fine_tune import FineTuneConfig, fine_tune
from tests.core import cases
from tests.worlds import CPU, accuracy, trained


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


def test_a_cycle_with_a_high_peak_forgets_what_a_small_rate_keeps():
    world = cases.noise_world(num_train=2000, num_holdout=2000, noise_dims=400, batch_norm=True)
    chosen = cases.first(world, 400)
    forget = world.train.take(chosen)

    def told_apart(model):
        scores = [
            margin(gather(model, records, batch_size=500, device=CPU), records.labels)
            for records in (forget, world.holdout)
        ]
        return abs(membership_auc(*scores) - 0.5)

    problem = partial(cases.problem, world, chosen)
    constant = fine_tune(problem(), FineTuneConfig(epochs=8))
    cycle = fine_tune(problem(), FineTuneConfig(epochs=8, lr=1.0, schedule="one_cycle"))
    oracle = told_apart(cases.oracle(world, chosen))
    assert told_apart(cycle) - oracle < 0.85 * (told_apart(constant) - oracle)
    assert accuracy(trained(world), world.holdout) - accuracy(cycle, world.holdout) < 0.03
