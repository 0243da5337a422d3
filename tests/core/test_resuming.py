"""Work of several trainings that was interrupted ends as if it had not been, and redoes none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from core import networks, weights
from core import sisa as sharding
from core.bank import Bank, train_bank
from core.checkpoints import Interrupted, Keeper, State
from core.errors import Diverged
from core.findings import Processes
from core.team import Team
from core.training import fit
from core.unlearners import unlearners
from tests.core import cases
from tests.worlds import CPU, gaussian_world

FLAT = gaussian_world(num_train=96, num_holdout=60, hidden=16, epochs=3)
NOISE = cases.noise_world(num_train=200, num_holdout=200, noise_dims=20, batch_norm=True)
NORMED = replace(NOISE, recipe=NOISE.recipe.model_copy(update={"batch_size": 40, "epochs": 3}))
SHARDED = cases.suited("sisa", FLAT)


class Stopping(Keeper):
    """Is asked to end when trainings have looked at it so many times, that is, taken steps."""

    stop_at = 0
    looks = 0

    @property
    def is_due(self) -> bool:
        self.looks += 1
        if self.looks == self.stop_at:
            self.interrupt()
        return super().is_due


class Attempts:
    """Attempts at the same work, each going on from what the one before left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.found: Path | None = None
        self.ignored: list[str] = []
        self.steps: list[int] = []
        """Taken by each."""

    def attempt(self, work: Callable[[Keeper], Any], stop_at: int = 0) -> Any:
        folder = self.folder / f"attempt-{len(self.steps)}"
        folder.mkdir()
        keeper = Stopping(folder, seconds=3600.0, found=self.found, ignored=self.ignored.append)
        keeper.stop_at = stop_at
        torch.rand(3)  # what a new process finds is not what the old one left
        try:
            return work(keeper)
        except Interrupted:
            self.found = folder / "checkpoint-1.safetensors"
            raise
        finally:
            self.steps.append(keeper.looks)

    def resumed(self, work: Callable[[Keeper], Any], stops: list[int]) -> Any:
        """Interrupt the work after so many steps each, then let it end."""
        for stop in stops:
            with pytest.raises(Interrupted):
                self.attempt(work, stop)
        return self.attempt(work)


@pytest.fixture
def attempts(tmp_path: Path) -> Attempts:
    return Attempts(tmp_path)


def bank(folder: Path, keeper: Keeper | None, **changes: Any) -> Bank:
    """A bank made where no file of an earlier attempt lies, as in a new runner."""
    folder.mkdir()
    usual: dict[str, Any] = {
        "fresh": FLAT.fresh,
        "train": FLAT.train,
        "judging": FLAT.holdout,
        "recipe": FLAT.recipe,
        "parent": "",
        "seed": 3,
        "batch_size": 16,
        "device": CPU,
        "keeper": keeper,
    }
    return train_bank(folder / "bank", **(usual | changes))


def said(one: Bank) -> list[torch.Tensor]:
    return [one.trained_on, one.train_margins, one.judging_margins]


STEPS = 2 * FLAT.recipe.epochs
"""Of one reference model: 48 records in batches of 32."""


@pytest.mark.parametrize("stops", [[2], [STEPS], [STEPS + 1], [3 * STEPS + 1, 1], [8, 3, 9]])
def test_a_bank_goes_on_in_the_midst_of_a_model(
    tmp_path: Path, attempts: Attempts, stops: list[int]
) -> None:
    expected = bank(tmp_path / "whole", None)
    found = attempts.resumed(
        lambda keeper: bank(tmp_path / f"out-{len(attempts.steps)}", keeper), stops
    )
    assert all(map(torch.equal, said(found), said(expected)))
    assert attempts.steps == [*stops, 4 * STEPS - sum(stops)]
    assert attempts.ignored == []


@pytest.mark.parametrize(
    "change", [{"seed": 4}, {"excluded": [3]}, {"fresh": cases.suited("sisa", FLAT).fresh}]
)
def test_models_of_another_bank_are_not_used(
    tmp_path: Path, attempts: Attempts, change: dict[str, Any]
) -> None:
    with pytest.raises(Interrupted):
        attempts.attempt(lambda keeper: bank(tmp_path / "first", keeper), STEPS + 2)
    found = attempts.attempt(lambda keeper: bank(tmp_path / "other", keeper, **change))
    expected = bank(tmp_path / "whole", None, **change)
    assert all(map(torch.equal, said(found), said(expected)))
    assert attempts.ignored == ["other_work"]


def test_who_trained_the_models_before_is_told(tmp_path: Path, attempts: Attempts) -> None:
    """Two processes that did not come about, then one that was all that was asked."""
    with pytest.raises(Interrupted):
        attempts.attempt(lambda keeper: bank(tmp_path / "a", keeper, team=Team(2)), 2 * STEPS + 1)
    team = Team(2)
    team.network = None
    attempts.attempt(lambda keeper: bank(tmp_path / "b", keeper, team=team))
    assert len(team.told) == 4
    assert {type(each) for each in team.told} == {Processes}


@pytest.mark.slow
def test_a_bank_of_several_processes_goes_on_to_the_same_bits(
    tmp_path: Path, attempts: Attempts
) -> None:
    def team() -> Team:
        return Team(2, networks.parse(FLAT.architecture))

    expected = bank(tmp_path / "whole", None, team=team(), num_models=2)
    last = team()
    with pytest.raises(Interrupted):
        attempts.attempt(
            lambda keeper: bank(tmp_path / "a", keeper, team=team(), num_models=2), STEPS + 2
        )
    found = attempts.attempt(lambda keeper: bank(tmp_path / "b", keeper, team=last, num_models=2))
    assert all(map(torch.equal, said(found), said(expected)))
    assert [told.used for told in last.told] == [2, 2]


def sharded(keeper: Keeper | None, seed: int = 0) -> nn.Module:
    return sharding.train(
        SHARDED.architecture, SHARDED.train, SHARDED.recipe, seed=seed, keeper=keeper
    )


@pytest.mark.parametrize("stops", [[2], [4, 4], [10, 1]])
def test_members_that_are_done_are_not_trained_again(attempts: Attempts, stops: list[int]) -> None:
    expected = Attempts(attempts.folder / "whole")
    expected.folder.mkdir()
    whole = expected.attempt(sharded)
    found = attempts.resumed(sharded, stops)
    assert weights.equal(found, whole)
    assert weights.equal(found, sharded(None))
    assert sharding.broken_seals(found) == []
    assert sum(attempts.steps) == expected.steps[0]
    assert attempts.ignored == []


def test_members_of_another_ensemble_are_not_used(attempts: Attempts) -> None:
    with pytest.raises(Interrupted):
        attempts.attempt(sharded, 8)
    found = attempts.attempt(lambda keeper: sharded(keeper, seed=1))
    assert weights.equal(found, sharded(None, seed=1))
    assert attempts.ignored == ["other_work"]


CYCLE = {"name": "fine_tune", "schedule": "one_cycle", "epochs": 2, "lr": 0.05}
SPARSE = {"name": "l1_sparse", "epochs": 3, "gamma": 0.01}
TICKET = {"name": "imp", "rounds": 2, "epochs": 1}
ORDERS: dict[str, dict[str, Any]] = {
    "retrain": {"name": "retrain"},
    "fine_tune": {"name": "fine_tune", "epochs": 2},
    "cycle": CYCLE,
    "l1_sparse": SPARSE,
    "l1_sparse by prox": SPARSE | {"prox": True},
    "msg": {"name": "msg", "epochs": 2},
    "ticket, then cycle": {"name": "prune_first", "prune": TICKET, "then": CYCLE},
    "ticket, then retrain": {"name": "prune_first", "prune": TICKET, "then": {"name": "retrain"}},
    "omp, then cycle": {
        "name": "prune_first",
        "prune": {"name": "omp", "epochs": 1},
        "then": CYCLE,
    },
}


STEPS_OF = {
    "retrain": 12,
    "fine_tune": 10,
    "cycle": 8,
    "l1_sparse": 15,
    "l1_sparse by prox": 15,
    "msg": 10,
    "ticket, then cycle": 20,
    "ticket, then retrain": 20,
    "omp, then cycle": 12,
}
"""Of all trainings of an unlearner and its pruner: 160 records in batches of 40, or of 32."""


def unlearned(order: dict[str, Any], keeper: Keeper | None, **changes: Any) -> nn.Module:
    world = SHARDED if order["name"] == "sisa" else NORMED
    given = cases.problem(world, cases.first(world, 40), batch_size=32, keeper=keeper, **changes)
    if keeper is not None:
        keeper.turn_to("the rung")
    return unlearners[order["name"]].run(given, unlearners.parse(order))


@pytest.mark.parametrize(
    ("name", "policy"),
    [(name, "recalibrate") for name in ORDERS]
    + [(name, policy) for name in ("cycle", "msg") for policy in ("frozen", "tracked")],
)
def test_an_unlearner_goes_on_where_it_was(attempts: Attempts, name: str, policy: str) -> None:
    order = ORDERS[name]
    changes = {"bn_policy": policy}
    expected = Attempts(attempts.folder / "whole")
    expected.folder.mkdir()
    whole = expected.attempt(lambda keeper: unlearned(order, keeper, **changes))
    (total,) = expected.steps
    assert total == STEPS_OF[name]
    stops = [total // 3, total // 3 + 1]
    found = attempts.resumed(lambda keeper: unlearned(order, keeper, **changes), stops)
    assert weights.equal(found, whole)
    assert weights.equal(found, unlearned(order, None, **changes))
    assert attempts.steps == [*stops, total - sum(stops)]
    assert attempts.ignored == []


@pytest.mark.parametrize("stops", [[2], [7], [9, 1]])
def test_touched_members_that_are_done_are_not_trained_again(
    attempts: Attempts, stops: list[int]
) -> None:
    found = attempts.resumed(lambda keeper: unlearned({"name": "sisa"}, keeper), stops)
    assert weights.equal(found, unlearned({"name": "sisa"}, None))
    assert sharding.broken_seals(found) == []
    assert attempts.ignored == []


def test_an_explosion_is_measured_from_the_first_loss_of_all_attempts(attempts: Attempts) -> None:
    """That of the last attempt is large already."""
    usual = {"seed": 0, "device": CPU, "epochs": 4, "lr": 5.0}

    def train(keeper: Keeper) -> nn.Module:
        return fit(FLAT.fresh(0), FLAT.train, FLAT.recipe, **usual, keeper=keeper)

    with pytest.raises(Interrupted):
        attempts.attempt(train, 8)
    with pytest.raises(Diverged, match="exploded"):
        attempts.attempt(train)


def test_a_checkpoint_of_another_rung_is_not_used(attempts: Attempts) -> None:
    """Same weights, records and recipe: only its rung tells the training from another one."""
    with pytest.raises(Interrupted):
        attempts.attempt(lambda keeper: unlearned(SPARSE | {"gamma": 0.02}, keeper), 8)

    def other(keeper: Keeper) -> nn.Module:
        turn_to = keeper.turn_to
        keeper.turn_to = lambda work: turn_to("another rung")  # type: ignore[method-assign]
        return unlearned(SPARSE, keeper)

    assert weights.equal(attempts.attempt(other), unlearned(SPARSE, None))
    assert attempts.ignored == ["other_work"]


def test_a_file_that_cannot_be_read_is_told_of(tmp_path: Path, attempts: Attempts) -> None:
    attempts.found = tmp_path / "broken"
    attempts.found.write_bytes(b"no tensors")
    found = attempts.attempt(lambda keeper: unlearned(CYCLE, keeper))
    assert weights.equal(found, unlearned(CYCLE, None))
    assert attempts.ignored == ["unreadable"]


def test_parts_are_of_one_work_and_apart_from_the_training(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path, seconds=0.0)
    keeper.turn_to("first")
    keeper.finish("a", {"weight": torch.ones(1)})
    keeper.turn_to("second")
    assert keeper.recall("a") is None
    keeper.finish("b", {"weight": torch.ones(2)})
    keeper.finish("b.c", {"weight": torch.ones(3)})
    keeper.save("this", State({"model.weight": torch.ones(4)}, {"step": 1}))
    again = Keeper(tmp_path, seconds=0.0, found=tmp_path / "checkpoint-1.safetensors")
    assert again.turn_to("second")
    assert again.recall("a") is None
    assert [*(again.recall("b") or {})] == ["weight"]
    assert torch.equal((again.recall("b.c") or {})["weight"], torch.ones(3))
    state = again.restore("this")
    assert state is not None
    assert [*state.tensors] == ["model.weight"]
