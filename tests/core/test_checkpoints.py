"""A training that was interrupted and went on is the one that was not, bit for bit on the CPU."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from core import weights
from core.checkpoints import Interrupted, Keeper
from core.data import Records
from core.recipe import Recipe
from core.training import fit
from tests.core.test_training import CPU, blobs, images, perceptron, recipe

OPTIMIZERS: list[dict[str, Any]] = [
    {"name": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True},
    {"name": "adamw", "lr": 0.01},
]
RECORDS = 30


class Wobbly(nn.Module):
    """Everything that holds state: batch norm, dropout, tied weights, convolutions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.convolution(x))).mean(dim=(2, 3))
        return self.head(self.drop(self.second(torch.relu(self.first(x)))))


class Stopper:
    """Asks a keeper to end after so many steps."""

    def __init__(self, keeper: Keeper, steps: int) -> None:
        self.keeper, self.left = keeper, steps

    def __call__(self, step: int, rate: float) -> None:
        self.left -= 1
        if self.left == 0:
            self.keeper.interrupt()


def train(keeper: Keeper | None, how: Recipe, stop_after: int = 0, seed: int = 5) -> nn.Module:
    return fit(
        Wobbly(),
        images(RECORDS),
        how,
        seed=seed,
        device=CPU,
        keeper=keeper,
        after_step=None if keeper is None or not stop_after else Stopper(keeper, stop_after),
    )


def keeper_of(folder: Path, found: Path | None = None, seconds: float = 3600.0) -> Keeper:
    folder.mkdir(parents=True, exist_ok=True)
    return Keeper(folder, seconds=seconds, found=found)


@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    optimizer=st.sampled_from(OPTIMIZERS),
    stops=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    schedule=st.sampled_from(["constant", "one_cycle", "cosine"]),
    augment=st.sampled_from([(), ("crop", "flip")]),
)
def test_interrupted_and_resumed_is_uninterrupted(
    tmp_path: Path, optimizer: dict[str, Any], stops: list[int], schedule: str, augment: tuple
) -> None:
    how = recipe(
        epochs=5, optimizer=optimizer, schedule={"name": schedule}, augment=augment, batch_size=8
    )
    whole = train(None, how)
    found, folder = None, tmp_path / hashlib.sha256(repr((stops, schedule)).encode()).hexdigest()
    for number, stop in enumerate(stops):
        keeper = keeper_of(folder / str(number), found)
        with pytest.raises(Interrupted):
            train(keeper, how, stop)
        torch.rand(number + 1)  # what a new process finds is not what the old one left
        found = folder / str(number) / "checkpoint-1.safetensors"
    resumed = train(keeper_of(folder / "last", found), how)
    assert weights.equal(resumed, whole)


def test_what_is_left_is_less(tmp_path: Path) -> None:
    """It goes on where it was: the steps before are not taken again."""
    how, steps = recipe(epochs=4, batch_size=10), []
    with pytest.raises(Interrupted):
        train(keeper_of(tmp_path / "a"), how, stop_after=7)
    found = tmp_path / "a/checkpoint-1.safetensors"
    fit(
        Wobbly(),
        images(RECORDS),
        how,
        seed=5,
        device=CPU,
        keeper=keeper_of(tmp_path / "b", found),
        after_step=lambda step, rate: steps.append(step),
    )
    assert steps == [8, 9, 10, 11, 12]


@pytest.mark.parametrize("change", ["seed", "recipe", "records", "start", "garbage"])
def test_another_training_starts_from_zero(tmp_path: Path, change: str) -> None:
    how = recipe(epochs=2)
    keeper = keeper_of(tmp_path)
    with pytest.raises(Interrupted):
        train_mlp(how, keeper, stop_after=2)
    file = tmp_path / "checkpoint-1.safetensors"
    if change == "garbage":
        file.write_bytes(file.read_bytes()[:100])
    other = {
        "seed": {"seed": 1},
        "recipe": {"how": recipe(epochs=3)},
        "records": {"records": blobs(20, seed=1)},
        "start": {"model": perceptron(hidden=[17])},
        "garbage": {},
    }[change]
    expected = train_mlp(**({"how": how} | other))
    if change == "start":
        other = {"model": perceptron(hidden=[17])}
    again = train_mlp(**({"how": how, "keeper": keeper_of(tmp_path / "x", file)} | other))
    assert weights.equal(again, expected)


def train_mlp(
    how: Recipe,
    keeper: Keeper | None = None,
    stop_after: int = 0,
    seed: int = 0,
    records: Records | None = None,
    model: nn.Module | None = None,
) -> nn.Module:
    return fit(
        model or perceptron(),
        records or blobs(20),
        how,
        seed=seed,
        device=CPU,
        keeper=keeper,
        after_step=Stopper(keeper, stop_after) if keeper and stop_after else None,
    )


def test_files_come_every_so_often_and_are_announced(tmp_path: Path) -> None:
    told: list[tuple[str, str]] = []
    keeper = Keeper(tmp_path, seconds=0.0, announce=lambda *said: told.append(said))
    keeper.notes["rungs"] = [1, 2]
    train_mlp(recipe(epochs=1), keeper)
    assert [name for name, _ in told] == [f"checkpoint-{n}.safetensors" for n in (1, 2, 3)]
    for name, digest in told:
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest
    assert keeper_of(tmp_path, tmp_path / told[0][0]).notes == {"rungs": [1, 2]}
    assert not [*tmp_path.glob("*.draft")]


class Hungry(nn.Module):
    """Has memory for so many records at once."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.inner, self.room, self.seen = perceptron(), room, []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(x))
        if len(x) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.inner(x)


def test_a_batch_too_large_for_the_memory_is_learned_in_pieces() -> None:
    how = recipe(epochs=1, batch_size=64)
    expected = train_mlp(how, records=blobs(64))
    hungry = Hungry(room=20)
    fit(hungry, blobs(64), how, seed=0, device=CPU)
    assert hungry.seen == [64, 32, 16, 16, 16, 16]
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(hungry.inner.state_dict()[name], value)


def test_a_batch_is_halved_four_times_at_most() -> None:
    hungry = Hungry(room=3)
    with pytest.raises(torch.OutOfMemoryError):
        fit(hungry, blobs(64), recipe(epochs=1, batch_size=64), seed=0, device=CPU)
    assert hungry.seen == [64, 32, 16, 8, 4]
