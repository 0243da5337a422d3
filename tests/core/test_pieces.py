"""A batch for which the memory does not suffice is done in pieces, with the same result."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from core import importance, persample
from core.pieces import Pieces
from core.scores import gather
from tests.core.test_importance import ClassToken, Twice, some
from tests.worlds import CPU


class Room:
    """Has a layer fail when more than so many records meet it at once."""

    def __init__(self, model: nn.Module, room: int) -> None:
        self.model, self.room = model, room
        self.seen: list[int] = []
        model.register_forward_pre_hook(self.look)

    def look(self, _: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self.seen.append(len(inputs[0]))
        if len(inputs[0]) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)).eval()


def test_logits_are_computed_in_pieces() -> None:
    torch.manual_seed(0)
    model, records = perceptron(), some(70, 5)
    expected = gather(model, records, batch_size=64, device=CPU)
    room = Room(model, 20)
    found = gather(model, records, batch_size=64, device=CPU)
    assert room.seen == [64, 32, 16, 16, 16, 16, 6]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("estimator", ["fisher_persample", "fisher_model"])
@pytest.mark.parametrize("make", [perceptron, Twice])
def test_importance_per_record_is_measured_in_pieces(
    estimator: importance.Estimator, make: Callable[[], nn.Module]
) -> None:
    torch.manual_seed(0)
    model, records = make().eval(), some(70, 5)
    expected = importance.estimate(model, records, estimator, batch_size=64, device=CPU)
    room = Room(model, 20)
    found = importance.estimate(model, records, estimator, batch_size=64, device=CPU)
    assert room.seen[:3] == [64, 32, 16]
    assert found.n == expected.n
    for name, value in expected.values.items():
        torch.testing.assert_close(found.values[name], value)


def test_a_chunk_that_fails_late_is_added_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the general route; a parameter's gradient may fit where the next one's does not."""
    torch.manual_seed(0)
    model, records = ClassToken().eval(), some(12, 5)
    expected = importance.estimate(model, records, "fisher_persample", batch_size=12, device=CPU)
    calls: list[int] = []

    def square(gradient: torch.Tensor) -> torch.Tensor:
        calls.append(len(gradient))
        if len(gradient) > 6 and len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return gradient.square()

    account = {id(p): torch.zeros_like(p) for p in model.parameters()}

    def add(parameter: nn.Parameter, values: torch.Tensor, _: persample.Where) -> None:
        account[id(parameter)] += values

    persample.add_general(
        model, records.images, records.labels, losses=importance._label_loss, add=add, of=square
    )
    assert calls == [12, 12, *[6] * 6]
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(account[id(parameter)] / 12, expected.values[name])


@pytest.mark.parametrize("estimator", ["fisher_batch", "mas"])
def test_batches_that_the_result_depends_on_are_not_split(
    estimator: importance.Estimator,
) -> None:
    model = perceptron()
    room = Room(model, 20)
    with pytest.raises(torch.OutOfMemoryError):
        importance.estimate(model, some(64, 5), estimator, batch_size=64, device=CPU)
    assert room.seen == [64]


@pytest.mark.parametrize(("count", "seen"), [(64, [64, 32, 16, 8, 4]), (3, [3, 2, 1])])
def test_a_batch_is_halved_four_times_or_to_one_record(count: int, seen: list[int]) -> None:
    tried: list[int] = []

    def fail(x: torch.Tensor) -> None:
        tried.append(len(x))
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        Pieces().run(fail, torch.zeros(count))
    assert tried == seen
