"""Implicit surgery: equal conditions for its signal, a multiplier that answers, and outcomes."""

import pytest
import torch
from pydantic import ValidationError

from core.recipe import AdamW
from core.unlearners.eupmu import EupmuConfig, eupmu
from tests.core import cases
from tests.core.unlearners.outcomes import of_class, of_records

VARIANTS = [
    {},
    {"fast": True},
    {"scale": "log", "epochs": 10, "forget_loss": "unseen"},
    {"dual_opt": "adam", "dual_lr": 0.1},
    {"forget_loss": "random_label", "epochs": 8},
]


def small_problem(count=40, **changes):
    world = cases.small_world()
    return cases.problem(world, cases.first(world, count), **changes)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_a_class_is_forgotten_as_by_an_oracle(options):
    found = of_class("eupmu", **options)
    assert found.before.forget - found.oracle.forget > 0.9
    assert abs(found.after.forget - found.oracle.forget) < 0.2
    assert found.after.holdout > found.oracle.holdout - 0.15


def test_records_move_towards_an_oracle():
    found = of_records("eupmu", lr=0.1, epochs=10)
    before, after = (abs(s.forget - found.oracle.forget) for s in (found.before, found.after))
    assert after < before / 2
    assert found.after.retain > 0.9


def test_the_multiplier_spares_the_retain_set():
    answered = of_class("eupmu", forget_loss="random_label")
    ignored = of_class("eupmu", forget_loss="random_label", dual_lr=1e-9)
    assert answered.after.retain > ignored.after.retain + 0.05
    assert ignored.problem.tried[-1]["largest_lambda"] < 1e-3
    assert answered.problem.tried[-1]["largest_lambda"] > 0.1


def test_tolerance_lets_it_forget_without_an_answer():
    strict, tolerant = small_problem(), small_problem()
    options = {"epochs": 10, "lr": 0.1, "stop": False, "forget_loss": "random_label"}
    eupmu(strict, EupmuConfig(eps=0.0, **options))
    eupmu(tolerant, EupmuConfig(eps=10.0, **options))
    assert tolerant.tried[-1]["largest_lambda"] < strict.tried[-1]["largest_lambda"]


@pytest.mark.parametrize(("fast", "passes"), [(False, 3), (True, 2)])
def test_the_second_look_is_at_the_same_retain_batch(fast, passes):
    problem = small_problem(batch_size=64)
    seen = []
    hook = problem.model.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    eupmu(problem, EupmuConfig(epochs=2, stop=False, fast=fast))
    hook.remove()
    steps = 2 * 4
    assert len(seen) == passes * steps
    if not fast:
        assert all(torch.equal(seen[3 * i], seen[3 * i + 2]) for i in range(steps))
        assert not any(torch.equal(seen[3 * i + 2], seen[3 * i + 3]) for i in range(steps - 1))


def test_eu_3_one_forget_record_is_in_every_step():
    problem = small_problem(1, batch_size=16)
    model = eupmu(problem, EupmuConfig(epochs=2, stop=False))
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


@pytest.mark.parametrize("fast", [False, True])
def test_eu_4_statistics_are_frozen_during_it(fast):
    world = cases.noise_world(num_train=400, num_holdout=400, noise_dims=10, batch_norm=True)
    problem = cases.problem(world, cases.first(world, 40), bn_policy="frozen")
    before = {name: value.clone() for name, value in problem.model.named_buffers()}
    model = eupmu(problem, EupmuConfig(epochs=2, fast=fast))
    assert before
    assert all(torch.equal(model.get_buffer(name), value) for name, value in before.items())


def test_with_adam_the_signal_is_divided_by_the_way_that_was_gone():
    world = cases.small_world()
    recipe = world.recipe.model_copy(update={"optimizer": AdamW(lr=1e-3, weight_decay=0.0)})
    problem = small_problem(recipe=recipe)
    model = eupmu(problem, EupmuConfig(epochs=10, lr=0.01, stop=False))
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    assert 0 < problem.tried[-1]["largest_lambda"] < 100


def test_a_step_that_is_cut_tells_the_multiplier_the_same(monkeypatch):
    """The signal is per unit of the uncut direction: near the parent, cutting changes nothing."""

    def multiplier(bound):
        monkeypatch.setattr("core.unlearners.eupmu.LARGEST_GRADIENT_ALONE", bound)
        problem = small_problem(batch_size=10_000)
        eupmu(problem, EupmuConfig(epochs=1, lr=1e-3, lambda0=5, stop=False))
        return problem.tried[-1]["lambda"]

    uncut = multiplier(1e9)
    assert abs(uncut - 5) > 0.1
    assert multiplier(0.05) - 5 == pytest.approx(uncut - 5, rel=0.1)


@pytest.mark.parametrize(
    "option", [{"eps": -0.1}, {"lambda0": -1}, {"dual_lr": 0}, {"scale": "log"}]
)
def test_what_would_turn_the_constraint_round_or_lose_its_bound_is_refused(option):
    with pytest.raises(ValidationError) as refused:
        EupmuConfig(**option)
    assert [error["loc"] for error in refused.value.errors()] == [tuple(option)]
