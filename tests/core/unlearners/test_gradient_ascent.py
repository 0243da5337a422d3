"""Gradient ascent: up to the bound and no further, with everything else held still."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from core import weights
from core.unlearners import gradient_ascent as module
from core.unlearners._descent import Pair, Plan
from core.unlearners.gradient_ascent import GradientAscentConfig, gradient_ascent
from tests.core import cases
from tests.worlds import accuracy, gaussian_world, trained

WORLD = gaussian_world(num_train=400, num_holdout=400, hidden=64, epochs=60)
CLASS = WORLD.train.labels == 1
NORMED = cases.noise_world(num_train=200, num_holdout=200, noise_dims=5, batch_norm=True)


def losses(model, records):
    (x, y), *_ = records.batches(10_000)
    with torch.no_grad():
        return F.cross_entropy(model(x), y, reduction="none")


def captured(monkeypatch, given, config):
    """What the loop would be given."""
    found = {}

    def loop(problem, gradients, plan, **roles):
        found.update(gradients=gradients, plan=plan, **roles)
        return problem.model

    monkeypatch.setattr(module, "descend", loop)
    gradient_ascent(given, config)
    return found


def gradient_of(model, gradients, records):
    (batch,) = records.batches(10_000)
    nothing = torch.empty(0), torch.empty(0, dtype=torch.int64)
    model.zero_grad()
    gradients(Pair(step=0, of=1, forget=batch, retain=nothing))
    return [p.grad.clone() for p in model.parameters()]


def test_the_gradient_is_the_ascent_of_records_below_the_bound_alone(monkeypatch):
    given = cases.problem(WORLD, cases.first(WORLD, 60))
    records = given.tuning
    config = GradientAscentConfig(margin=0.5)
    gradients = captured(monkeypatch, given, config)["gradients"]
    found = gradient_of(given.model, gradients, records)
    inside = losses(given.model, records) < math.log(WORLD.num_classes) + 0.5
    assert 0 < int(inside.sum()) < len(records)
    (x, y), *_ = records.take(inside).batches(10_000)
    expected = -F.cross_entropy(given.model(x), y, reduction="sum") / len(records)
    for a, b in zip(
        found, torch.autograd.grad(expected, list(given.model.parameters())), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("bounded", "still"), [(True, True), (False, False)])
def test_records_at_chance_give_no_gradient(monkeypatch, bounded, still):
    given = cases.problem(WORLD, cases.first(WORLD, 60))
    far = replace(given.forget, labels=(given.forget.labels + 1) % WORLD.num_classes)
    far = far.take(losses(given.model, far) > math.log(WORLD.num_classes) + 1)
    gradients = captured(monkeypatch, given, GradientAscentConfig(bounded=bounded))["gradients"]
    found = gradient_of(given.model, gradients, far)
    assert len(far) > 5
    assert (not any(bool(g.any()) for g in found)) == still


def test_it_needs_the_forget_set_alone(monkeypatch):
    given = cases.problem(WORLD, cases.first(WORLD, 60), retain=None)
    with_retain = cases.problem(WORLD, cases.first(WORLD, 60))
    config = GradientAscentConfig()
    assert weights.equal(gradient_ascent(given, config), gradient_ascent(with_retain, config))
    assert len(captured(monkeypatch, with_retain, config)["retain"]) == 0


def test_the_plan_clips_holds_batch_norm_and_stops(monkeypatch):
    given = cases.problem(WORLD, cases.first(WORLD, 60))
    plan: Plan = captured(monkeypatch, given, GradientAscentConfig(clip=0.3))["plan"]
    assert (plan.clip, plan.batch_statistics, plan.stop, plan.pace) == (0.3, False, True, "forget")


def test_a_price_shrinks_the_weights_meanwhile():
    def norm(gamma):
        given = cases.problem(WORLD, CLASS, selector="class")
        config = GradientAscentConfig(gamma=gamma, stop=False, lr=0.075, clip=100)
        model = gradient_ascent(given, config)
        return sum(float(p.detach().abs().sum()) for p in model.parameters() if p.ndim == 2)

    assert norm(0.05) < 0.9 * norm(0.0)


def test_the_bound_holds_back_what_ascends_without_end():
    found = {}
    for bounded in (True, False):
        given = cases.problem(WORLD, CLASS, selector="class")
        config = GradientAscentConfig(bounded=bounded, stop=False, lr=0.5)
        model = gradient_ascent(given, config)
        found[bounded] = losses(model, given.forget).mean(), accuracy(model, given.retain)
    bound = math.log(WORLD.num_classes) + 1
    assert found[True][0] < 5 * bound
    assert found[False][0] > 50 * bound
    assert found[True][1] > found[False][1] + 0.2


def test_running_statistics_stay_without_a_retain_set():
    given = cases.problem(NORMED, cases.first(NORMED, 40), retain=None)
    before = {name: value.clone() for name, value in given.model.named_buffers()}
    model = gradient_ascent(given, GradientAscentConfig(epochs=5))
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    assert not weights.equal(model, trained(NORMED))


def test_a_class_is_forgotten_as_by_an_oracle_and_the_others_stay():
    given = cases.problem(WORLD, CLASS, selector="class")
    oracle = cases.oracle(WORLD, CLASS)
    before = accuracy(given.model, given.forget)
    model = gradient_ascent(given, GradientAscentConfig())
    assert before - accuracy(oracle, given.forget) > 0.9
    assert abs(accuracy(model, given.forget) - accuracy(oracle, given.forget)) < 0.25
    assert accuracy(model, given.retain) > accuracy(oracle, given.retain) - 0.05
    assert given.tried[-1]["forgot"]


def test_records_fade_in_the_direction_of_the_oracle():
    forget = cases.first(WORLD, 80)
    given = cases.problem(WORLD, forget)
    before = accuracy(given.model, given.forget)
    oracle = accuracy(cases.oracle(WORLD, forget), given.forget)
    model = gradient_ascent(given, GradientAscentConfig())
    assert abs(accuracy(model, given.forget) - oracle) < abs(before - oracle)
    assert accuracy(model, given.retain) > 0.9
