"""l1-sparse tuning: its schedules, its zeros, and what is left of it at a price of nothing."""

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from core import networks, weights
from core.team import Team
from core.unlearners.fine_tune import FineTuneConfig, fine_tune
from core.unlearners.l1_sparse import L1SparseConfig, l1_sparse
from tests.core import cases
from tests.worlds import accuracy, gaussian_world, trained

WORLD = cases.small_world()
NORMED = cases.noise_world(num_train=200, num_holdout=200, noise_dims=20, batch_norm=True)


def run(world=WORLD, changes=None, **options):
    given = cases.problem(world, cases.first(world, 40), batch_size=32, **(changes or {}))
    return l1_sparse(given, L1SparseConfig(**{"epochs": 3, **options}))


@pytest.mark.parametrize("policy", ["recalibrate", "frozen", "tracked"])
@pytest.mark.parametrize("prox", [False, True])
def test_l1_without_a_price_it_is_fine_tuning_bit_for_bit(policy, prox):
    given = cases.problem(NORMED, cases.first(NORMED, 40), batch_size=32, bn_policy=policy)
    expected = fine_tune(given, FineTuneConfig(epochs=2, lr=0.03))
    model = run(NORMED, {"bn_policy": policy}, epochs=2, lr=0.03, gamma=0, prox=prox)
    assert weights.equal(model, expected)
    assert not weights.equal(model, trained(NORMED))


@pytest.mark.parametrize(
    ("schedule", "free", "prices"),
    [
        ("constant", 0, {0: 0.5, 5: 0.5, 9: 0.5}),
        ("growing", 0, {0: 0.05, 5: 0.3, 9: 0.5}),
        ("decay", 0, {0: 0.5, 5: 0.25, 9: 0.05}),
        ("constant", 2, {0: 0.5, 5: 0.5, 7: 0.5, 8: 0.0, 9: 0.0}),
        ("growing", 2, {0: 0.0625, 7: 0.5, 8: 0.0, 9: 0.0}),
        ("decay", 2, {0: 0.5, 4: 0.25, 7: 0.0625, 8: 0.0, 9: 0.0}),
    ],
)
def test_l1_schedules(schedule, free, prices):
    config = L1SparseConfig(gamma=0.5, schedule=schedule, epochs=10, no_l1_epochs=free)
    assert {epoch: config.price(epoch) for epoch in prices} == pytest.approx(prices)


@pytest.mark.parametrize("prox", [False, True])
def test_a_price_keeps_the_training_to_one_process(prox):
    team = Team(2, networks.parse(WORLD.architecture))
    model = run(changes={"team": team}, prox=prox, gamma=0.05)
    assert weights.equal(model, run(prox=prox, gamma=0.05))
    told = team.summary()
    assert (told.asked, told.used) == (2, 1)
    assert told.reason is not None


@pytest.mark.parametrize("prox", [False, True])
def test_every_step_is_charged_the_price_of_its_epoch(monkeypatch, prox):
    asked = []
    price = L1SparseConfig.price
    monkeypatch.setattr(
        L1SparseConfig, "price", lambda self, epoch: asked.append(epoch) or price(self, epoch)
    )
    run(prox=prox, epochs=3)
    assert asked == [0] * 7 + [1] * 7 + [2] * 7


@pytest.mark.parametrize("prox", [False, True])
def test_l1_masked_weights_stay_zero(prox):
    given = cases.problem(WORLD, cases.first(WORLD, 40), batch_size=32)
    masks = {
        name: torch.rand(p.shape, generator=torch.Generator().manual_seed(0)) < 0.5
        for name, p in given.model.named_parameters()
        if p.ndim == 2
    }
    given = replace(given, masks=masks)
    given.keep_masks(given.model)
    model = l1_sparse(given, L1SparseConfig(prox=prox, gamma=1e-3))
    for name, mask in masks.items():
        assert not bool(model.get_parameter(name)[~mask].any())
        assert bool(model.get_parameter(name)[mask].any())


def zeros(model):
    matrices = [p for p in model.parameters() if p.ndim == 2]
    return sum(int((p == 0).sum()) for p in matrices) / sum(p.numel() for p in matrices)


def norm(model):
    return sum(float(p.detach().abs().sum()) for p in model.parameters() if p.ndim == 2)


def test_the_proximal_step_gives_exact_zeros_and_the_same_norm_as_the_subgradient():
    options = {"gamma": 0.01, "schedule": "constant", "lr": 0.05, "epochs": 20}
    smooth, exact, free = run(**options), run(prox=True, **options), run(**options | {"gamma": 0})
    assert zeros(exact) > 0.3
    assert zeros(smooth) < 0.01
    assert norm(exact) == pytest.approx(norm(smooth), rel=0.1)
    assert norm(exact) < 0.8 * norm(free)


@pytest.mark.parametrize(("scope", "charged"), [("weights", False), ("all", True)])
def test_the_price_is_on_weights_or_on_everything(scope, charged):
    options = {"gamma": 0.5, "schedule": "constant", "lr": 1e-3, "epochs": 1, "prox": True}
    model = run(NORMED, scope=scope, **options)
    free = run(NORMED, **options | {"gamma": 0})
    for (name, p), other in zip(model.named_parameters(), free.parameters(), strict=True):
        shrunk = float(p.detach().abs().sum()) < 0.99 * float(other.detach().abs().sum())
        assert shrunk == (charged or p.ndim == 2), name


def test_it_forgets_in_the_direction_of_the_oracle_and_keeps_what_stays():
    world = gaussian_world(num_train=400, num_holdout=400, hidden=64, epochs=60)
    forget = cases.first(world, 80)
    given = cases.problem(world, forget, batch_size=32)
    before = accuracy(given.model, given.forget)
    oracle = accuracy(cases.oracle(world, forget), given.forget)
    model = l1_sparse(given, L1SparseConfig(gamma=1e-3, epochs=30, lr=0.1))
    after = accuracy(model, given.forget)
    assert abs(after - oracle) < 0.5 * abs(before - oracle)
    assert accuracy(model, given.retain) > 0.97


def test_some_epoch_must_have_a_price():
    with pytest.raises(ValidationError, match="fewer than epochs") as refused:
        L1SparseConfig(epochs=5, no_l1_epochs=5)
    assert [error["loc"] for error in refused.value.errors()] == [("no_l1_epochs",)]
