"""Training: typed recipes, the one loop, and the same bits for the same seed."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from core import networks, weights
from core.data import Preprocessing, Records
from core.errors import Diverged, InvalidInput, OutOfTime
from core.recipe import SGD, Constant, Cosine, MultiStep, OneCycle, rate_factor
from core.report import no_progress
from core.training import Monitor, Recipe, fit
from tests.worlds import accuracy, digits_world, gaussian_world, trained

CPU = torch.device("cpu")
CIFAR_RECIPE = {
    "epochs": 15,
    "batch_size": 256,
    "optimizer": {
        "name": "sgd",
        "lr": 0.1,
        "momentum": 0.9,
        "nesterov": True,
        "weight_decay": 5e-4,
    },
    "schedule": {"name": "one_cycle", "warmup": 0.2},
    "precision": "bf16",
    "seed": 1,
}


def images(count: int) -> Records:
    """Colour images of three classes with nothing to learn in them."""
    draw = torch.Generator().manual_seed(1)
    return Records(
        images=torch.randint(0, 255, (count, 3, 8, 8), generator=draw, dtype=torch.uint8),
        labels=torch.randint(0, 3, (count,), generator=draw),
        rows=torch.arange(count),
        preprocessing=Preprocessing(height=8, width=8, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3),
    )


def blobs(count: int, seed: int = 0) -> Records:
    draw = torch.Generator().manual_seed(seed)
    return Records(
        images=torch.randn(count, 6, generator=draw),
        labels=torch.randint(0, 3, (count,), generator=draw),
        rows=torch.arange(count),
        preprocessing=Preprocessing(),
    )


def perceptron(**options: Any) -> nn.Module:
    raw = {"name": "mlp", "in_features": 6, "hidden": [16], "num_classes": 3, **options}
    return networks.build(networks.parse(raw), seed=0)


def recipe(**changes: Any) -> Recipe:
    options = {"epochs": 2, "batch_size": 8, "optimizer": {"name": "sgd", "lr": 0.1}, **changes}
    return Recipe.model_validate(options)


def train(model: nn.Module, records: Records, **options: Any) -> nn.Module:
    options = {"recipe": recipe(), "seed": 0, "device": CPU, **options}
    return fit(model, records, **options)


def test_the_recipe_of_the_cifar_checkpoint_is_expressible_and_survives_json() -> None:
    parsed = Recipe.model_validate(CIFAR_RECIPE)
    assert Recipe.model_validate_json(parsed.model_dump_json()) == parsed


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer": {"name": "sgd", "lr": 1e308}},
        {"optimizer": {"name": "sgd", "lr": 0}},
        {"optimizer": {"name": "sgd", "lr": float("nan")}},
        {"optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.0, "nesterov": True}},
        {"optimizer": {"name": "adamw", "lr": 0.1, "momentum": 0.9}},
        {"epochs": 10**9},
        {"epochs": 0},
        {"batch_size": 0},
        {"schedule": {"name": "one_cycle", "warmup": 0}},
        {"schedule": {"name": "multistep", "milestones": []}},
        {"augment": ["rotate"]},
        {"precision": "fp16"},
        {"label_smoothing": 1},
        {"seed": 2**63},
        {"typo": 1},
    ],
)
def test_recipes_out_of_bounds_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        recipe(**change)


def test_one_cycle_follows_torch() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.0, total_steps=50, pct_start=0.2, cycle_momentum=False
    )
    for step in range(50):
        expected = theirs.get_last_lr()[0]
        assert rate_factor(OneCycle(warmup=0.2), step, 50, 5) == pytest.approx(expected, rel=1e-9)
        optimizer.step()
        if step < 49:
            theirs.step()


def test_schedules_have_the_shape_they_promise() -> None:
    assert [rate_factor(Constant(), step, 4, 2) for step in range(4)] == [1.0] * 4
    drops = MultiStep(milestones=(1, 3), gamma=0.5)
    assert [rate_factor(drops, step, 8, 4) for step in range(8)] == [1, 1, 0.5, 0.5, 0.5, 0.5] + [
        0.25
    ] * 2
    assert rate_factor(Cosine(), 5, 10, 1) == pytest.approx(0.5)
    warm = [rate_factor(Cosine(warmup=0.5), step, 10, 1) for step in range(10)]
    assert warm[:6] == sorted(warm[:6])
    assert warm[5] == 1.0
    assert warm[5:] == sorted(warm[5:], reverse=True)
    assert all(
        0 < rate_factor(OneCycle(), step, n, 1) <= 1 for n in range(1, 6) for step in range(n)
    )


def test_training_memorises_what_it_saw_and_not_what_it_did_not() -> None:
    world = gaussian_world()
    model = trained(world)
    assert accuracy(model, world.train) > 0.98
    assert accuracy(model, world.holdout) < 0.85


def test_same_seed_gives_the_same_bits_and_another_seed_does_not() -> None:
    options = {"dropout": 0.2, "batch_norm": True}
    first, second, third = (
        train(perceptron(**options), blobs(50), seed=seed) for seed in (3, 3, 4)
    )
    assert weights.digest(first) == weights.digest(second)
    assert weights.digest(first) != weights.digest(third)


def test_same_seed_gives_the_same_bits_on_augmented_images_in_bf16() -> None:
    world = digits_world(num_records=120)
    options = recipe(augment=["crop", "flip"], precision="bf16", epochs=1)
    digests = {weights.digest(train(world.fresh(0), world.train, recipe=options)) for _ in range(2)}
    assert len(digests) == 1


def test_a_step_of_sgd_is_the_textbook_one() -> None:
    model, records = perceptron(), blobs(8)
    start = weights.frozen_copy(model)
    loss = nn.functional.cross_entropy(start.requires_grad_()(records.images), records.labels)
    loss.backward()
    train(model, records, recipe=recipe(epochs=1), lr=0.5)
    for name, parameter in model.named_parameters():
        before = start.get_parameter(name)
        torch.testing.assert_close(parameter, before - 0.5 * before.grad)


def test_adamw_and_smoothing_are_used() -> None:
    options = [
        recipe(),
        recipe(label_smoothing=0.2),
        recipe(optimizer={"name": "adamw", "lr": 0.01}),
        recipe(optimizer={"name": "adamw", "lr": 0.01, "beta2": 0.9}),
    ]
    digests = {weights.digest(train(perceptron(), blobs(20), recipe=one)) for one in options}
    assert len(digests) == len(options)


@pytest.mark.parametrize("count", [2, 9, 17])
def test_a_last_batch_of_one_record_does_not_break_batch_norm(count: int) -> None:
    fractions: list[float] = []
    model = train(
        perceptron(batch_norm=True), blobs(count), progress=lambda done, _: fractions.append(done)
    )
    assert fractions[-1] == 1.0
    assert not model.training


def test_too_little_to_train_on_is_said() -> None:
    for count, options in ((0, {}), (1, {"batch_norm": True})):
        with pytest.raises(InvalidInput) as caught:
            train(perceptron(**options), blobs(count))
        assert caught.value.code == "retain_set_too_small"


def test_recipes_that_do_not_fit_are_refused() -> None:
    for model, options in (
        (perceptron(batch_norm=True), recipe(batch_size=1)),
        (perceptron(), recipe(augment=["flip"])),
    ):
        with pytest.raises(InvalidInput) as caught:
            train(model, blobs(8), recipe=options)
        assert caught.value.code == "recipe_invalid"


def test_batches_of_one_record_train_a_network_without_batch_norm() -> None:
    seen: list[float] = []
    train(perceptron(), blobs(3), recipe=recipe(batch_size=1), progress=lambda d, _: seen.append(d))
    assert seen[-1] == 1.0


def test_overrides_are_used_and_checked() -> None:
    epochs: list[int] = []

    def count(model: nn.Module, x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        epochs.append(len(x))
        return z.sum() * 0

    train(perceptron(), blobs(8), epochs=5, extra_loss=count)
    assert epochs == [8] * 5
    for bad in ({"epochs": 0}, {"lr": 0.0}):
        with pytest.raises(ValueError, match="above zero"):
            train(perceptron(), blobs(8), **bad)


def test_the_extra_loss_steers_the_weights() -> None:
    def shrink(model: nn.Module, x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return 10 * z.square().mean()

    plain = train(perceptron(), blobs(40), epochs=20)
    small = train(perceptron(), blobs(40), epochs=20, extra_loss=shrink)
    x = blobs(40).images
    assert small(x).abs().mean() < 0.5 * plain(x).abs().mean()


def test_frozen_parameters_stay() -> None:
    model = perceptron()
    model.get_parameter("1.weight").requires_grad_(False)
    before = model.get_parameter("1.weight").clone()
    train(model, blobs(20))
    assert torch.equal(model.get_parameter("1.weight"), before)


def test_divergence_has_a_name() -> None:
    with pytest.raises(Diverged):
        train(perceptron(), blobs(64), recipe=recipe(epochs=30), lr=1e20)


def test_a_loss_that_explodes_is_divergence_though_it_is_finite() -> None:
    model = perceptron()
    with pytest.raises(Diverged, match="exploded"):
        train(model, blobs(64), recipe=recipe(epochs=2), lr=10.0)
    assert not weights.non_finite(model)


def losses(*values: float, of: int = 1000) -> Monitor:
    monitor = Monitor(no_progress, of, 10)
    for value in values:
        monitor.tick(torch.tensor(value))
    return monitor


@pytest.mark.parametrize(
    "values",
    [
        [0.001, *[100.0] * 300],  # what was learned before is no measure: a guess is
        [50.0, *[4000.0] * 300],
        [2.0, 900.0, 2.0, 2.0],
        [2.0, *[1e6] * 20, *[1.0] * 200],
        [-1.0, *[-(10.0**n) for n in range(30)]],
    ],
)
def test_a_loss_that_grows_within_reason_is_none(values: list[float]) -> None:
    losses(*values).end()


@pytest.mark.parametrize("first", [0.001, 2.0, -5.0])
def test_a_loss_is_held_against_the_first_one_and_a_guess(first: float) -> None:
    with pytest.raises(Diverged, match="about 300 at step 301 of 1000"):
        losses(first, *[300.0] * 300).end()


def test_an_exploded_loss_is_not_waited_for_till_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.training._TICK_SECONDS", 0.0)
    monitor = losses(2.0, *[1e6] * 100)
    with pytest.raises(Diverged, match="exploded"):
        monitor.tick(torch.tensor(1e6))


def test_the_clock_can_stop_training() -> None:
    steps = 0

    def check() -> None:
        nonlocal steps
        steps += 1
        if steps == 3:
            raise OutOfTime("over")

    with pytest.raises(OutOfTime):
        train(perceptron(), blobs(64), check_time=check)
    assert steps == 3


def test_progress_reports_a_finite_loss() -> None:
    reports: list[tuple[float, dict[str, float]]] = []
    train(perceptron(), blobs(30), progress=lambda done, live: reports.append((done, live)))
    assert reports[-1][0] == 1.0
    assert math.isfinite(reports[-1][1]["loss"])


def test_peak_rate_is_the_optimizers(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    step = torch.optim.SGD.step

    def record(self: torch.optim.SGD, *args: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args)

    monkeypatch.setattr(torch.optim.SGD, "step", record)
    options = Recipe(epochs=10, batch_size=8, optimizer=SGD(lr=0.3), schedule=OneCycle(warmup=0.2))
    train(perceptron(), blobs(80), recipe=options)
    assert len(rates) == 100
    assert max(rates) == pytest.approx(0.3)
    assert rates.index(max(rates)) == 19


@pytest.mark.gpu
def test_a_gpu_trains_to_about_the_same_weights() -> None:
    world = digits_world(num_records=200)
    options = recipe(epochs=1, batch_size=25)
    on_cpu, on_gpu = (
        train(world.fresh(0), world.train, recipe=options, device=torch.device(name)).cpu()
        for name in ("cpu", "cuda")
    )
    for name, parameter in on_cpu.named_parameters():
        torch.testing.assert_close(parameter, on_gpu.get_parameter(name), rtol=0.02, atol=0.005)
