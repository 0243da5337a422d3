"""Two gradients, one step: closed forms of the rules, the multiplier, and equal conditions."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector

from core.ladder import parse
from core.unlearners import _surgery, unlearners
from core.unlearners._dual import Dual, RunningNorm
from core.unlearners._surgery import (
    Losses,
    Products,
    combine,
    nash,
    pcgrad,
    products,
    unilateral,
)
from tests.core import cases

FORGET = torch.tensor([1.0, 0.0], dtype=torch.float64)
RETAIN = torch.tensor([-1.0, 1.0], dtype=torch.float64)


def step(rule, forget=FORGET, retain=RETAIN):
    """The direction that a rule makes of two gradients."""
    a, b = rule(products([forget], [retain]))
    parameter = nn.Parameter(torch.zeros_like(forget))
    combine([parameter], [forget.clone()], [retain], (a, b))
    return parameter.grad


@pytest.mark.parametrize(
    ("eps", "weight", "direction"),
    [(0.0, 0.5, (0.5, 0.5)), (0.5, 0.25, (0.75, 0.25)), (1.0, 0.0, (1.0, 0.0)), (2.0, 0, (1, 0))],
)
def test_eu_1_the_closed_form_of_unilateral_surgery(eps, weight, direction):
    assert unilateral(products([FORGET], [RETAIN]), eps) == (1.0, pytest.approx(weight, abs=1e-12))
    found = step(lambda of: unilateral(of, eps))
    torch.testing.assert_close(found, torch.tensor(direction, dtype=torch.float64))
    assert float(RETAIN @ found) >= -eps - 1e-12


def test_without_conflict_the_retain_gradient_is_not_used():
    assert unilateral(Products(forget=1, cross=0.3, retain=2)) == (1.0, 0.0)
    assert unilateral(Products(forget=1, cross=0, retain=0)) == (1.0, 0.0)


def test_pcgrad_projects_each_on_the_plane_of_the_other():
    def without(a, b):
        return a - (a @ b) / (b @ b) * b

    torch.testing.assert_close(step(pcgrad), without(FORGET, RETAIN) + without(RETAIN, FORGET))
    agreeing = torch.tensor([1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(step(pcgrad, FORGET, agreeing), FORGET + agreeing)


@pytest.mark.parametrize("angle", [0.0, 0.3, math.pi / 2, 2.5, 3.1])
def test_nash_is_the_bisector_of_length_sqrt_2(angle):
    forget = 3 * FORGET
    retain = 0.2 * torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
    a, b = nash(products([forget], [retain]))
    cosine = math.cos(angle)
    if angle:  # the closed form of the paper is 0 / 0 for parallel gradients
        root = math.sqrt((1 - cosine) / math.sin(angle) ** 2)
        assert (a, b) == (pytest.approx(root / 3), pytest.approx(root / 0.2))
    direction = step(nash, forget, retain)
    assert direction.norm().item() == pytest.approx(math.sqrt(2))
    gains = direction @ forget / 3, direction @ retain / 0.2
    assert gains[0].item() == pytest.approx(gains[1].item())


def test_nash_of_opposite_or_absent_gradients_is_finite():
    assert nash(products([FORGET], [-2 * FORGET])) == (0.0, 0.0)
    assert nash(products([FORGET], [0 * FORGET])) == (pytest.approx(math.sqrt(2)), 0.0)
    assert nash(products([0 * FORGET], [0 * FORGET])) == (0.0, 0.0)


def implicit(beta, eps, steps, norm=1.0):
    """Follow the multiplier on linear losses, whose growth per unit of step size is -g_r.d."""
    dual = Dual(0.0, beta, eps)
    seen = [0.0]
    for _ in range(steps):
        direction = FORGET + dual.value * RETAIN
        dual.step(-(RETAIN @ direction), norm)
        seen.append(float(dual.value))
    return seen


@pytest.mark.parametrize(("eps", "expected"), [(0.0, 0.5), (0.5, 0.25), (1.0, 0.0)])
@pytest.mark.parametrize(("beta", "norm"), [(0.1, 1.0), (0.4, 1.0), (0.9, 1.0), (0.8, 2.0)])
def test_eu_2_the_multiplier_finds_the_closed_form(beta, norm, eps, expected):
    seen = implicit(beta, eps, 40, norm)
    assert seen[-1] == pytest.approx(expected, abs=1e-3)
    assert min(seen) >= 0


def test_eu_2_it_converges_by_a_constant_factor_and_oscillates_beyond_its_bound():
    errors = [value - 0.5 for value in implicit(0.4, 0.0, 8)]
    assert all(b == pytest.approx((1 - 0.4 * 2) * a, abs=1e-12) for a, b in pairwise(errors))
    assert abs(implicit(1.1, 0.0, 40)[-1] - 0.5) > 0.4


def test_eu_2_with_frozen_weights_it_falls_by_beta_eps_until_zero():
    dual = Dual(1.0, 0.5, 0.6)
    seen = []
    for _ in range(6):
        dual.step(torch.zeros((), dtype=torch.float64))
        seen.append(float(dual.value))
    assert seen == pytest.approx([0.7, 0.4, 0.1, 0.0, 0.0, 0.0])
    dual.step(torch.tensor(1.0, dtype=torch.float64))
    assert float(dual.value) == pytest.approx(0.5 * 0.4)  # at once: nothing wound up below zero
    assert float(dual.largest) == 1.0


def test_adam_moves_by_its_rate_whatever_the_size_of_the_signal():
    for growth in (1e-3, 1e3):
        dual = Dual(0.0, 0.1, 0.0, "adam")
        dual.step(torch.tensor(growth, dtype=torch.float64))
        assert float(dual.value) == pytest.approx(0.1, rel=1e-3)


def test_the_running_norm_keeps_the_largest_and_fades():
    norm = RunningNorm()
    norm.exact(torch.tensor(4.0))
    norm.bound(growth=torch.tensor(1.0), direction=torch.tensor(1.0))
    assert float(norm.value) == pytest.approx(0.95 * 4)
    norm.bound(growth=torch.tensor(6.0), direction=torch.tensor(4.0))
    assert float(norm.value) == pytest.approx(9)
    norm.exact(torch.tensor(1.0))
    assert float(norm.value) == pytest.approx(9)


def test_a_loss_is_the_same_twice_although_there_is_dropout():
    world = cases.small_world()
    problem = cases.problem(world, cases.first(world, 40))
    problem.model.insert(len(problem.model) - 1, nn.Dropout(0.5))
    losses = Losses(problem, "random_label")
    problem.model.train()
    pairs = [
        _surgery.Pair(
            step=number,
            of=2,
            forget=next(losses.records.batches(40)),
            retain=next(problem.retain.batches(40)),
        )
        for number in range(2)
    ]
    for loss in (losses.forget, losses.retain):
        first, other = (loss(pair).item() for pair in pairs)
        torch.rand(3)
        [again] = losses.again(loss, pair=pairs[0])
        assert again.item() == first
        assert other != first


def test_pruned_weights_do_not_count():
    world = cases.small_world()
    problem = cases.problem(world, cases.first(world, 40))
    name, weight = next(iter(problem.model.named_parameters()))
    mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    pruned = cases.problem(world, cases.first(world, 40), masks={name: mask})
    pruned.keep_masks(pruned.model)
    seen = []

    def rule(of):
        seen.append(of)
        return unilateral(of)

    plan = _surgery.Plan(epochs=1, lr=0.01, pace="retain", momentum=0.0, stop=False)
    model = _surgery.explicit(pruned, Losses(pruned, "random_label"), rule, plan)
    gradient = model.get_parameter(name).grad
    assert torch.equal(gradient[~mask], torch.zeros(int((~mask).sum())))
    assert torch.equal(model.get_parameter(name)[~mask], torch.zeros(int((~mask).sum())))
    assert gradient[mask].abs().sum() > 0
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("name", "longest"),
    [
        ("linear_weighting", 1),
        ("pcgrad", 1),
        ("famo", 1),
        ("salun", 1),
        ("ungrad", 10),
        ("eupmu", 10),
    ],
)
def test_no_step_is_longer_than_rate_and_bound_allow(name, longest):
    """A model that is very sure asks for steps after which the next loss is not finite."""
    given = cases.problem(world := cases.small_world(), cases.first(world, 40), batch_size=10_000)
    with torch.no_grad():
        for parameter in given.model.parameters():
            parameter.mul_(10)
    before = parameters_to_vector(given.model.parameters()).detach()
    wrong = {} if name == "salun" else {"forget_loss": "random_label"}
    options = parse({"name": name, "epochs": 1, "lr": 0.01, "stop": False, **wrong})
    after = parameters_to_vector(unlearners[name].run(given, options).parameters()).detach()
    moved = float((after - before).norm())
    # what is not salient stays where it is
    assert (0.5 if name == "salun" else 0.99) < moved / (0.01 * longest) < 1.01
