"""Trainings that several processes share: real processes on the CPU, held against one alone."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import nn

from core import batchnorm, networks, weights
from core.checkpoints import Interrupted
from core.data import Records
from core.errors import Diverged, OutOfTime, ProcessDied
from core.recipe import Recipe
from core.registry import Config
from core.team import Team
from core.training import fit
from tests.core.test_checkpoints import Stopper, keeper_of
from tests.core.test_training import CPU, blobs, images, perceptron, recipe

VIT = {
    "name": "vit",
    "image_size": 8,
    "patch_size": 4,
    "in_channels": 3,
    "num_classes": 3,
}
MLP = {"name": "mlp", "in_features": 6, "hidden": [16], "num_classes": 3}
RESNET = {"name": "resnet20", "in_channels": 3, "num_classes": 3}


def described(raw: dict[str, Any]) -> Config:
    return networks.parse(raw)


def train(raw: dict[str, Any], records: Records, how: Recipe, size: int, **more: Any) -> nn.Module:
    """Train with so many processes, all of which must be used."""
    team = Team(size, described(raw))
    model = more.pop("model", None) or networks.build(described(raw), 0)
    trained = fit(model, records, how, seed=3, device=CPU, team=team, **more)
    assert [told.used for told in team.told] == ([size] if size > 1 else [])
    assert not psutil.Process().children(recursive=True) or size == 1 or helpers() == []
    return trained


def helpers() -> list[psutil.Process]:
    """Processes of a team that are still there."""
    return [
        child
        for child in psutil.Process().children(recursive=True)
        if child.status() != psutil.STATUS_ZOMBIE and "spawn_main" in " ".join(child.cmdline())
    ]


@pytest.mark.parametrize(
    ("raw", "records", "how"),
    [
        (MLP, blobs(50), recipe(batch_size=7, optimizer={"name": "adamw", "lr": 0.01})),
        pytest.param(
            VIT,
            images(24),
            recipe(batch_size=10, augment=["crop", "flip"], label_smoothing=0.1),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_two_processes_take_the_steps_of_one(
    raw: dict[str, Any], records: Records, how: Recipe
) -> None:
    """Shares of unlike size, order and augmentation included, up to rounding."""
    alone, together = (train(raw, records, how, size) for size in (1, 2))
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(together.state_dict()[name], value, rtol=1e-3, atol=1e-5)
    fresh = networks.build(described(raw), 0)
    assert not weights.equal(alone, fresh)


@pytest.mark.slow
def test_the_same_number_of_processes_gives_the_same_bits() -> None:
    how = recipe(batch_size=32, augment=["crop", "flip"])
    first, again = (train(RESNET, images(64), how, 2) for _ in range(2))
    assert weights.equal(first, again)


@pytest.mark.slow
def test_running_statistics_are_those_of_all_processes() -> None:
    """One step, no augmentation: means over both shares are the means over the batch."""
    how = recipe(epochs=1, batch_size=64, optimizer={"name": "sgd", "lr": 1e-9})
    alone, together = (train(RESNET, images(64), how, size) for size in (1, 2))
    first = next(m for m in alone.modules() if isinstance(m, nn.BatchNorm2d))
    same = next(m for m in together.modules() if isinstance(m, nn.BatchNorm2d))
    torch.testing.assert_close(same.running_mean, first.running_mean, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_frozen_statistics_and_still_parameters_stay() -> None:
    model = networks.build(described(RESNET), 0)
    still = next(name for name, _ in model.named_parameters())
    model.get_parameter(still).requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with batchnorm.frozen(model):
        train(RESNET, images(8), recipe(batch_size=4), 2, model=model)
    changed = {n for n, v in model.state_dict().items() if not torch.equal(v, before[n])}
    assert still not in changed
    assert not [name for name in changed if "running" in name]
    assert changed


@pytest.mark.slow
def test_pruned_weights_stay_zero() -> None:
    model = networks.build(described(MLP), 0)
    name, weight = next(iter(model.named_parameters()))
    mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    alone, together = (train(MLP, blobs(40), recipe(), size, masks={name: mask}) for size in (1, 2))
    assert not together.get_parameter(name)[~mask].any()
    torch.testing.assert_close(together.get_parameter(name), alone.get_parameter(name))


@pytest.mark.slow
def test_interrupted_and_resumed_is_uninterrupted(tmp_path: Path) -> None:
    how = recipe(epochs=3, batch_size=32, augment=["crop"], optimizer={"name": "adamw", "lr": 0.01})
    whole = train(RESNET, images(64), how, 2)
    keeper = keeper_of(tmp_path / "a")
    with pytest.raises(Interrupted):
        train(RESNET, images(64), how, 2, keeper=keeper, after_step=Stopper(keeper, 3))
    found = tmp_path / "a/checkpoint-1.safetensors"
    resumed = train(RESNET, images(64), how, 2, keeper=keeper_of(tmp_path / "b", found))
    assert weights.equal(resumed, whole)
    team = Team(4, described(RESNET))
    keeper = keeper_of(tmp_path / "c", found)
    model = networks.build(described(RESNET), 0)
    fit(model, images(64), how, seed=3, device=CPU, team=team, keeper=keeper, extra_loss=nothing)
    assert team.told[0].reason is not None
    assert "its first 3 steps were taken by 2" in team.told[0].reason


def nothing(*_: object) -> torch.Tensor:
    return torch.zeros(())


@pytest.mark.slow
def test_a_divergence_and_a_deadline_end_all_processes() -> None:
    wild = recipe(epochs=30)
    with pytest.raises(Diverged):
        train(MLP, blobs(50), wild, 2, lr=1e20)
    assert helpers() == []
    left = iter(range(10**9))

    def check_time() -> None:
        if helpers() and next(left) > 20:
            raise OutOfTime("spent")

    with pytest.raises(OutOfTime):
        train(MLP, blobs(50), recipe(epochs=10_000), 2, check_time=check_time)
    assert helpers() == []


def test_the_death_of_one_process_ends_the_training() -> None:
    def shoot(step: int, rate: float) -> None:
        if step == 3:
            os.kill(helpers()[0].pid, signal.SIGKILL)

    with pytest.raises(ProcessDied, match="process 2 of 2 of a training ended: SIGKILL"):
        train(MLP, blobs(50), recipe(epochs=10_000), 2, after_step=shoot)
    assert helpers() == []


@pytest.mark.slow
def test_an_error_in_one_process_ends_the_training(capfd: pytest.CaptureFixture[str]) -> None:
    """Here because the others build another network than the one that is trained."""
    team = Team(2, described({**MLP, "hidden": [17]}))
    model = networks.build(described(MLP), 0)
    with pytest.raises(ProcessDied, match="process 2 of 2 of a training ended: exit status 1"):
        fit(model, blobs(50), recipe(), seed=3, device=CPU, team=team)
    assert "RuntimeError" in capfd.readouterr().err
    assert helpers() == []


def hungry(model: nn.Module, room: int) -> nn.Module:
    """Give this process, and no other, memory for so many records at once."""
    forward = model.forward

    def with_little(x: torch.Tensor) -> torch.Tensor:
        if len(x) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(x)

    model.forward = with_little
    return model


@pytest.mark.slow
def test_a_share_too_large_for_the_memory_is_learned_in_pieces() -> None:
    how = recipe(epochs=1, batch_size=64)
    alone = train(MLP, blobs(128), how, 1)
    together = train(MLP, blobs(128), how, 2, model=hungry(perceptron(), room=8))
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(together.state_dict()[name], value)


@pytest.mark.slow
def test_too_little_memory_ends_all_processes() -> None:
    how = recipe(epochs=1, batch_size=64)
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        train(MLP, blobs(128), how, 2, model=hungry(perceptron(), room=1))
    assert helpers() == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"extra_loss": nothing}, "its loss looks at more"),
        ({"team": Team(2, None)}, "no description"),
        ({"recipe": recipe(batch_size=31)}, "a share of a batch would be below 16 records"),
    ],
)
def test_where_it_cannot_be_shared_one_process_trains_and_says_so(
    change: dict[str, Any], reason: str
) -> None:
    options = {"team": Team(2, described(RESNET)), "recipe": recipe(batch_size=32), **change}
    how, team = options.pop("recipe"), options["team"]
    model = networks.build(described(RESNET), 0)
    fit(model, images(31), how, seed=3, device=CPU, **options)
    told = team.summary()
    assert told is not None
    assert (told.asked, told.used, told.backend, told.determinism) == (2, 1, None, None)
    assert told.reason is not None
    assert reason in told.reason
