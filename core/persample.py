"""Sums of squared per-record gradients, exact, without storing a gradient per record.

In eval mode no layer mixes records, so with the summed loss the gradient that arrives at a
layer's output is, record by record, that record's own. Together with the layer's input it gives
the squared gradient in closed form:

Linear on [N, in]    (delta^2)^T (input^2)
Convolution          per kernel tap, sum over output positions before squaring; with few
                     positions as one product over position pairs, else record by record
Norm layers, biases  sum over positions before squaring

Parameters need no gradient of their own meanwhile, which saves a third of a plain backward pass.
Models with other parameters (class tokens, attention projections) take the general route, one
gradient per record under ``torch.func.vmap``.

Shapes: N records, L positions, O output and C input channels per group, G groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from .pieces import Pieces
from .smallmaps import connections, dense_small_maps, padding_of

Losses = Callable[[Tensor, Tensor], list[Tensor]]
"""Logits and labels of a batch to one or more losses per record, each [N]."""

Forward = Callable[[nn.Module, Tensor], Tensor]
"""Runs a model on a batch of inputs."""

Where = tuple[slice | int, ...]
"""The part of a parameter that values are for; the rest has none."""

Add = Callable[[Tensor, Tensor, Where], None]
"""Adds a batch's sum of squared gradients of (a part of) a parameter to an account."""

Squares = list[tuple[Tensor, Tensor, Where]]
"""Parameters with their sums of squared gradients."""

ALL: Where = ()

FEW_POSITIONS = 6
"""Up to here one large product over position pairs beats small products per record."""

CACHE_BYTES = 1 << 21

CHUNK_BYTES = 1 << 28
"""Memory that per-record gradients may take at once."""


class Unsupported(Exception):
    """A model has parameters or habits that the closed forms do not cover."""


def has_closed_form(model: nn.Module) -> bool:
    """Whether every parameter belongs to exactly one layer with a closed form."""
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
            if type(module) not in _FORMS:
                return False
    return all(count == 1 for count in owners.values())


def add_closed_form(
    forward: Forward, model: nn.Module, x: Tensor, y: Tensor, *, losses: Losses, add: Add
) -> None:
    """Add squared per-record gradients by the closed forms.

    Nothing is added unless the whole batch is covered.

    Args:
        forward: runs the model on inputs; a place for autocast.
        model: in eval mode.
        x: inputs.
        y: labels.
        losses: every one of them is squared and added apart.
        add: called with each parameter and what to add to its account.

    Raises:
        Unsupported: if a layer is used twice or not at all, or its input is overwritten.
    """
    account: Squares = []
    with (
        _without_parameter_gradients(model),
        dense_small_maps(model),
        _watching(model, account) as calls,
    ):
        per_loss = losses(forward(model, x), y)
        expected = {
            id(m) for m in model.modules() if next(m.parameters(recurse=False), None) is not None
        }
        if calls.keys() != expected or any(count != 1 for count in calls.values()):
            raise Unsupported("a layer is used more than once, or not at all")
        for index, loss in enumerate(per_loss):
            loss.sum().backward(retain_graph=index + 1 < len(per_loss))
    for parameter, squares, where in account:
        add(parameter, squares, where)


def add_general(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    losses: Losses,
    add: Add,
    of: Callable[[Tensor], Tensor] = torch.square,
    pieces: Pieces | None = None,
) -> None:
    """Add squared per-record gradients from one gradient per record, in chunks.

    Arguments are those of ``add_closed_form``; ``of`` is applied to each record's gradient before
    records are summed; ``pieces`` splits chunks for which the memory does not suffice.
    """
    pieces = pieces or Pieces()
    named = dict(model.named_parameters())
    values = {name: parameter.detach() for name, parameter in named.items()}
    buffers = dict(model.named_buffers())
    num_losses = len(losses(functional_call(model, (values, buffers), (x[:1],)), y[:1]))
    chunk = max(1, CHUNK_BYTES // (4 * max(sum(v.numel() for v in values.values()), 1)))

    def loss_of_one(values: dict[str, Tensor], x: Tensor, y: Tensor, index: int) -> Tensor:
        logits = functional_call(model, (values, buffers), (x.unsqueeze(0),))
        return losses(logits, y.unsqueeze(0))[index].squeeze(0)

    per_record: Any = vmap(grad(loss_of_one), in_dims=(None, 0, 0, None), randomness="error")

    def add_chunk(index: int, xs: Tensor, ys: Tensor) -> None:
        gradients = per_record(values, xs, ys, index)
        # All of them before any is added: a chunk that fails is done again.
        sums = {name: of(gradient).sum(0) for name, gradient in gradients.items()}
        for name, value in sums.items():
            add(named[name], value, ALL)

    for index in range(num_losses):
        for xs, ys in zip(x.split(chunk), y.split(chunk), strict=True):
            pieces.run(partial(add_chunk, index), xs, ys)


@contextmanager
def _without_parameter_gradients(model: nn.Module) -> Iterator[None]:
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in wanted:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, requires_grad in wanted:
            parameter.requires_grad_(requires_grad)


@contextmanager
def _watching(model: nn.Module, account: Squares) -> Iterator[dict[int, int]]:
    """Let every layer with a closed form add its squares to the account during backward."""
    calls: dict[int, int] = {}

    def watch(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        calls[id(module)] = calls.get(id(module), 0) + 1
        source, version = inputs[0].detach(), inputs[0]._version
        watched = inputs[0]

        def collect(delta: Tensor) -> None:
            if watched._version != version:
                raise Unsupported("a layer's input is overwritten before backward")
            with torch.autocast(source.device.type, enabled=False):
                account.extend(_FORMS[type(module)](module, source, delta.detach()))

        is_first = not output.requires_grad
        output.requires_grad_(True).register_hook(collect)
        return output.clone() if is_first else output  # a leaf may not be changed in place

    handles = [m.register_forward_hook(watch) for m in model.modules() if type(m) in _FORMS]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _linear(layer: nn.Linear, x: Tensor, delta: Tensor) -> Squares:
    x, delta = _full(x), _full(delta)
    if x.dim() == 2:
        weight = delta.square().T @ x.square()
        return [(layer.weight, weight, ALL), *_bias(layer.bias, lambda: delta)]
    x_NLC, delta_NLO = x.flatten(1, -2), delta.flatten(1, -2)
    weight = _squared_products(delta_NLO, x_NLC)
    return [(layer.weight, weight, ALL), *_bias(layer.bias, lambda: delta_NLO.sum(1))]


def _conv(layer: nn.Conv2d, x: Tensor, delta: Tensor) -> Squares:
    padding = padding_of(layer)
    if padding is None:
        raise Unsupported("only explicit zero padding has a closed form")
    if layer.groups > 1:
        squares: Squares = [(layer.weight, _grouped(layer, padding, x, delta), ALL)]
    elif delta.shape[2] * delta.shape[3] <= FEW_POSITIONS:
        squares = _by_position_pairs(layer, padding, _full(x), _full(delta))
    else:
        squares = [(layer.weight, _by_record(layer, padding, x, delta), ALL)]
    return squares + _bias(layer.bias, lambda: _full(delta).sum((2, 3)))


def _by_position_pairs(
    layer: nn.Conv2d, padding: tuple[int, int], x: Tensor, delta: Tensor
) -> Squares:
    """Expand the square of the sum over positions into one product per pair of positions.

    Taps that see only padding cost nothing: on a 1x1 map that is all but one of nine.
    """
    seen = _pair_products(x.permute(2, 3, 0, 1).flatten(0, 1).contiguous())
    due = _pair_products(delta.permute(2, 3, 0, 1).flatten(0, 1).contiguous())
    size, out_size = (x.shape[2], x.shape[3]), (delta.shape[2], delta.shape[3])
    squares: Squares = []
    for (row, column), pairs in connections(layer, padding, size, out_size).items():
        if not pairs:
            continue
        tap = delta.new_zeros(delta.shape[1], x.shape[1])
        for index, (o, i) in enumerate(pairs):
            tap.addmm_(due(o, o).T, seen(i, i))
            for other_o, other_i in pairs[:index]:
                tap.addmm_(due(o, other_o).T, seen(i, other_i), alpha=2)
        squares.append((layer.weight, tap, (slice(None), slice(None), row, column)))
    return squares


def _pair_products(values_LNC: Tensor) -> Callable[[int, int], Tensor]:
    """Products of two positions' values, each made once."""
    made: dict[tuple[int, int], Tensor] = {}

    def product(first: int, second: int) -> Tensor:
        pair = (min(first, second), max(first, second))
        if pair not in made:
            made[pair] = values_LNC[first] * values_LNC[second]
        return made[pair]

    return product


def _by_record(layer: nn.Conv2d, padding: tuple[int, int], x: Tensor, delta: Tensor) -> Tensor:
    (kh, kw), (sh, sw), (dh, dw) = layer.kernel_size, layer.stride, layer.dilation
    (ph, pw), (oh, ow) = padding, delta.shape[2:]
    padded = F.pad(x.to(delta.dtype), (pw, pw, ph, ph)).permute(0, 2, 3, 1).contiguous()
    n, _, _, c = padded.shape
    along_n, along_h, along_w, _ = padded.stride()
    windows = padded.as_strided(
        (n, oh, ow, kh, kw, c),
        (along_n, along_h * sh, along_w * sw, along_h * dh, along_w * dw, 1),
    )
    due = delta.permute(0, 2, 3, 1).flatten(1, 2)
    squares = _squared_products(due, windows, record_shape=(oh * ow, kh * kw * c))
    return squares.view(-1, kh, kw, c).permute(0, 3, 1, 2)


def _grouped(layer: nn.Conv2d, padding: tuple[int, int], x: Tensor, delta: Tensor) -> Tensor:
    shape = layer.weight.shape
    groups, length = layer.groups, delta.shape[2] * delta.shape[3]
    x, delta = _full(x), _full(delta)
    result = delta.new_zeros(groups, shape[0] // groups, shape[1:].numel())
    step = _records_at_once(x.device, layer.weight.numel())
    for xs, deltas in zip(x.split(step), delta.split(step), strict=True):
        patches = F.unfold(
            xs,
            layer.kernel_size,
            layer.dilation,
            padding,
            layer.stride,
        ).reshape(-1, shape[1:].numel(), length)
        due = deltas.reshape(-1, shape[0] // groups, length)
        result += (due @ patches.mT).square_().unflatten(0, (-1, groups)).sum(0)
    return result.reshape(shape)


def _squared_products(
    delta_NLO: Tensor, x: Tensor, record_shape: tuple[int, int] | None = None
) -> Tensor:
    """Sum over records of the squared sum over positions of delta times x, [O, C].

    Args:
        x: [N, L, C], or any view that reshapes to it; made contiguous a few records at a time.
        record_shape: (L, C) where x is such a view.
    """
    length, c = record_shape or (x.shape[1], x.shape[2])
    o = delta_NLO.shape[2]
    result = _full(delta_NLO.new_zeros(o, c))
    step = _records_at_once(x.device, o * c)
    for delta, xs in zip(delta_NLO.split(step), x.split(step), strict=True):
        result += _full(delta.mT @ xs.reshape(-1, length, c)).square_().sum(0)
    return result


def _full(values: Tensor) -> Tensor:
    """Leave half precision: squares and sums of it would lose the small values."""
    return values.float() if values.dtype in {torch.bfloat16, torch.float16} else values


def _records_at_once(device: torch.device, floats_per_record: int) -> int:
    """On a CPU as many as stay in its second-level cache."""
    limit = CACHE_BYTES if device.type == "cpu" else CHUNK_BYTES
    return max(1, limit // (4 * max(floats_per_record, 1)))


def _batch_norm(layer: nn.BatchNorm1d | nn.BatchNorm2d, x: Tensor, delta: Tensor) -> Squares:
    x, delta = _full(x), _full(delta)
    if layer.running_mean is None or layer.running_var is None:
        raise Unsupported("a batch-norm layer without running statistics mixes records")
    if x.dim() > 2:  # channels last: for maps in that layout these are views
        x, delta = x.movedim(1, -1).flatten(1, -2), delta.movedim(1, -1).flatten(1, -2)
    else:
        x, delta = x.unsqueeze(1), delta.unsqueeze(1)
    scale = (layer.running_var + layer.eps).rsqrt()
    return _affine(layer, ((x - layer.running_mean) * delta).sum(1) * scale, delta.sum(1))


def _layer_norm(layer: nn.LayerNorm, x: Tensor, delta: Tensor) -> Squares:
    x, delta = _full(x), _full(delta)
    shape = list(layer.normalized_shape)
    normed = F.layer_norm(x, shape, None, None, layer.eps) * delta
    inner = [-1, x[0].numel() // torch.Size(shape).numel(), *shape]
    return _affine(layer, normed.reshape(inner).sum(1), delta.reshape(inner).sum(1))


def _group_norm(layer: nn.GroupNorm, x: Tensor, delta: Tensor) -> Squares:
    x, delta = _full(x), _full(delta)
    normed = F.group_norm(x, layer.num_groups, None, None, layer.eps) * delta
    flat = [len(x), layer.num_channels, -1]
    return _affine(layer, normed.reshape(flat).sum(2), delta.reshape(flat).sum(2))


def _affine(layer: nn.Module, weight_gradients: Tensor, bias_gradients: Tensor) -> Squares:
    weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
    squares: Squares = [] if weight is None else [(weight, weight_gradients.square().sum(0), ALL)]
    return squares + _bias(bias, lambda: bias_gradients)


def _bias(bias: Tensor | None, gradients: Callable[[], Tensor]) -> Squares:
    return [] if bias is None else [(bias, gradients().square().sum(0), ALL)]


_FORMS: dict[type[nn.Module], Callable[[Any, Tensor, Tensor], Squares]] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.LayerNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
}
