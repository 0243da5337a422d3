"""Batch norm: running statistics move only when the policy says so."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from core import batchnorm, weights
from core.data import Preprocessing, Records

CPU = torch.device("cpu")


def features(values: torch.Tensor) -> Records:
    count = len(values)
    return Records(
        images=values,
        labels=torch.zeros(count, dtype=torch.int64),
        rows=torch.arange(count),
        preprocessing=Preprocessing(),
    )


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 4), nn.BatchNorm1d(4))


def test_recalibrating_on_constant_data_gives_exact_mean_and_variance() -> None:
    model = network()
    model[0].running_mean.fill_(9.0)
    batchnorm.recalibrate(model, features(torch.tensor([[1.0, -2.0, 0.5]] * 10)), 4, CPU)
    assert torch.equal(model[0].running_mean, torch.tensor([1.0, -2.0, 0.5]))
    assert torch.equal(model[0].running_var, torch.zeros(3))


def test_the_mean_is_that_of_all_records_though_the_last_batch_is_short() -> None:
    values = torch.randn(603, 3, generator=torch.Generator().manual_seed(1)) + 5
    model = network()
    batchnorm.recalibrate(model, features(values), 150, CPU)
    torch.testing.assert_close(model[0].running_mean, values.mean(dim=0))
    assert model[0].num_batches_tracked == 5


def test_sorted_records_do_not_shrink_the_variance() -> None:
    values = torch.arange(1280.0)[:, None].expand(1280, 3).contiguous()
    model = network()
    batchnorm.recalibrate(model, features(values), 128, CPU)
    assert (model[0].running_var / values.var(dim=0) - 1).abs().max() < 0.1


def test_recalibrating_touches_nothing_else() -> None:
    model = network().train()
    model[3].eval()
    before = weights.frozen_copy(model)
    batchnorm.recalibrate(model, features(torch.randn(20, 3)), 8, CPU)
    assert [m.training for m in model] == [True, True, True, False]
    assert model[0].momentum == model[3].momentum == 0.1
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before.get_parameter(name))


def test_recalibrating_is_repeatable_and_forgets_earlier_statistics() -> None:
    records = features(torch.randn(50, 3))
    model, other = network(), network()
    other[0].running_var.fill_(7.0)
    for each in (model, other):
        batchnorm.recalibrate(each, records, 8, CPU, limit=30)
    assert weights.equal(model, other)
    whole = network()
    batchnorm.recalibrate(whole, records, 8, CPU)
    assert not weights.equal(model, whole)


def test_no_batch_has_one_record() -> None:
    model = network()
    batchnorm.recalibrate(model, features(torch.randn(257, 3)), 128, CPU)
    assert model[0].num_batches_tracked == 3
    assert weights.non_finite(model) == []


@pytest.mark.parametrize("batch_size", [1, 2, 127])
def test_small_batches_do_not_shrink_the_variance(batch_size: int) -> None:
    records = features(torch.randn(500, 3, generator=torch.Generator().manual_seed(2)))
    model, usual = network(), network()
    batchnorm.recalibrate(model, records, batch_size, CPU)
    batchnorm.recalibrate(usual, records, batchnorm.FEWEST_PER_BATCH, CPU)
    assert weights.equal(model, usual)
    assert (model[0].running_var / records.images.var(dim=0) - 1).abs().max() < 0.05


@pytest.mark.parametrize("count", [0, 1])
def test_recalibrating_on_fewer_than_two_records_is_an_error(count: int) -> None:
    with pytest.raises(ValueError, match="fewer than two"):
        batchnorm.recalibrate(network(), features(torch.empty(count, 3)), 4, CPU)


def test_frozen_statistics_stay_even_if_the_model_is_put_in_train_mode() -> None:
    model = network()
    before = weights.frozen_copy(model)
    with batchnorm.frozen(model):
        model.train()
        model(torch.randn(8, 3)).sum().backward()
    assert torch.equal(model[0].running_mean, before[0].running_mean)
    assert model[0].weight.grad is not None
    assert model[0].training
    model(torch.randn(8, 3))
    assert not torch.equal(model[0].running_mean, before[0].running_mean)


def test_frozen_statistics_can_be_measured_anew() -> None:
    frozen, free = network(), network()
    records = features(3 + torch.randn(64, 3, generator=torch.Generator().manual_seed(0)))
    batchnorm.recalibrate(free, records, 16, CPU)
    with batchnorm.frozen(frozen):
        frozen.train()
        batchnorm.recalibrate(frozen, records, 16, CPU)
        after = frozen[0].running_mean.clone()
        frozen(records.images)
    assert weights.equal(frozen, free)
    assert torch.equal(frozen[0].running_mean, after)


def test_has_batchnorm_wants_running_statistics() -> None:
    assert batchnorm.has_batchnorm(network())
    assert not batchnorm.has_batchnorm(nn.LayerNorm(3))
    assert not batchnorm.has_batchnorm(nn.BatchNorm1d(3, track_running_stats=False))
