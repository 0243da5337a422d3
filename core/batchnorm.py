"""Batch norm: running statistics are a channel that no gradient method touches.

They hold means and variances computed with the forget set, so after unlearning they are measured
anew on retained data (``recalibrate``); during it they may be left alone (``frozen``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .data import Records
from .determinism import generator
from .errors import InvalidInput

FEWEST_PER_BATCH = 128
"""Records of a batch that statistics are measured on. Averaged over smaller ones the variance
misses what their means differ by."""

_SHUFFLE_SEED = 0
"""Fixed: recalibration is part of a model, not of a run."""


def has_batchnorm(model: nn.Module) -> bool:
    """Whether any layer keeps running statistics of batches."""
    return bool(_tracking(model))


def moving(model: nn.Module) -> list[Tensor]:
    """Running means and variances that the last forward pass moved."""
    layers = [layer for layer in _tracking(model) if layer.training]
    found = [statistic for each in layers for statistic in (each.running_mean, each.running_var)]
    return [statistic for statistic in found if statistic is not None]


def learns(model: nn.Module) -> bool:
    """Whether training normalises by the batch, and so depends on how records are put together."""
    return has_batchnorm(model) and not is_frozen(model)


def check_batches(model: nn.Module, count: int, batch_size: int) -> None:
    """Refuse to train by batches of one record, which batch norm can't normalise.

    Args:
        model: with or without batch norm.
        count: of the records.
        batch_size: records per batch.

    Raises:
        InvalidInput: ``retain_set_too_small`` with one record, ``recipe_invalid`` with batches of
            one.
    """
    if not any(isinstance(module, _BatchNorm) for module in model.modules()):
        return
    if count == 1:
        raise InvalidInput("retain_set_too_small", "1 records are too few to train on")
    if batch_size == 1:
        raise InvalidInput("recipe_invalid", "batch norm can't be trained one record at a time")


def is_frozen(model: nn.Module) -> bool:
    """Whether batch norm keeps its running statistics (``frozen``)."""
    return any(_to_eval in layer._forward_pre_hooks.values() for layer in _tracking(model))


@torch.no_grad()
def recalibrate(
    model: nn.Module,
    records: Records,
    batch_size: int,
    device: torch.device,
    limit: int | None = None,
) -> None:
    """Measure the running statistics of every batch-norm layer anew, in one forward pass.

    Statistics are averaged over batches weighted by their size, which for equal batches is the
    cumulative average that ``momentum=None`` stands for. Records are shuffled first, because a
    batch of one class has less variance than the data. Modes and momenta are restored.

    Args:
        model: changed in place; a model without batch norm is left as it is.
        records: retained records; unaugmented.
        batch_size: records per batch; fewer than ``FEWEST_PER_BATCH`` count as that many.
        device: where the model lives.
        limit: use at most this many records, drawn with a fixed seed.

    Raises:
        ValueError: if there are fewer than two records.
    """
    layers = _tracking(model)
    if not layers:
        return
    if len(records) < 2:
        raise ValueError("batch norm can't be recalibrated on fewer than two records")
    order = torch.randperm(len(records), generator=generator(_SHUFFLE_SEED))[:limit]
    modes = {module: module.training for module in model.modules()}
    momenta = {layer: layer.momentum for layer in layers}
    model.eval()
    # After the hooks of ``frozen``, so that it has the last word within that context.
    hooks = [layer.register_forward_pre_hook(_to_train) for layer in layers]
    try:
        for layer in layers:
            layer.reset_running_stats()
        _average(model, layers, records.take(order), batch_size, device)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
        for layer, momentum in momenta.items():
            layer.momentum = momentum


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Keep batch norm on its running statistics, whatever ``model.train()`` says meanwhile.

    ``recalibrate`` alone measures them anew within. The affine parameters stay trainable. Modes are
    restored at the end.
    """
    layers = _tracking(model)
    modes = {layer: layer.training for layer in layers}
    hooks = [layer.register_forward_pre_hook(_to_eval) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer, mode in modes.items():
            layer.train(mode)


def _average(
    model: nn.Module,
    layers: list[_BatchNorm],
    records: Records,
    batch_size: int,
    device: torch.device,
) -> None:
    seen = 0
    for x, _ in records.batches(max(batch_size, FEWEST_PER_BATCH), device, even=True):
        seen += len(x)
        for layer in layers:
            layer.momentum = len(x) / seen
        model(x)


def _tracking(model: nn.Module) -> list[_BatchNorm]:
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


def _to_eval(layer: nn.Module, _: object) -> None:
    layer.training = False


def _to_train(layer: nn.Module, _: object) -> None:
    layer.training = True
