"""Convolutions on maps smaller than their kernel, as one dense product.

On a 2x2 or 1x1 map most taps of a 3x3 kernel see padding alone, yet a convolution multiplies them
all. Networks made for large images meet such maps when they are given small ones. The dense form
holds, for each pair of output and input position, the tap that connects them, so the result is the
same up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SAVING = 1.5
"""The dense form is taken where it multiplies this much less."""


def padding_of(layer: nn.Conv2d) -> tuple[int, int] | None:
    """Return explicit zero padding, or None where it is of another kind."""
    if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        return None
    return layer.padding[0], layer.padding[1]


def connections(
    layer: nn.Conv2d, padding: tuple[int, int], size: tuple[int, int], out_size: tuple[int, int]
) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """Return for each tap the pairs of output and input position (row-major) that it connects."""
    found = {}
    for row in range(layer.kernel_size[0]):
        for column in range(layer.kernel_size[1]):
            ys, xs = (
                [
                    (o, o * layer.stride[axis] + tap * layer.dilation[axis] - padding[axis])
                    for o in range(out_size[axis])
                ]
                for axis, tap in ((0, row), (1, column))
            )
            found[row, column] = [
                (oy * out_size[1] + ox, iy * size[1] + ix)
                for oy, iy in ys
                for ox, ix in xs
                if 0 <= iy < size[0] and 0 <= ix < size[1]
            ]
    return found


@contextmanager
def dense_small_maps(model: nn.Module) -> Iterator[None]:
    """Run every convolution on a small map as a dense product, on the CPU.

    A copy made meanwhile keeps doing so, with weights of its own.
    """
    chosen = [
        m
        for m in model.modules()
        if type(m) is nn.Conv2d and m.groups == 1 and "forward" not in vars(m)
    ]
    try:
        for layer in chosen:
            layer.forward = MethodType(_forward, layer)  # type: ignore[method-assign]
        yield
    finally:
        for layer in chosen:
            del layer.forward


def _forward(layer: nn.Conv2d, x: Tensor) -> Tensor:
    padding = padding_of(layer)
    positions = x.shape[2] * x.shape[3]
    saving = layer.kernel_size[0] * layer.kernel_size[1] / positions
    if padding is None or x.device.type != "cpu" or saving < SAVING:
        return nn.Conv2d.forward(layer, x)
    return _dense(layer, padding, x)


def _dense(layer: nn.Conv2d, padding: tuple[int, int], x: Tensor) -> Tensor:
    size = (x.shape[2], x.shape[3])
    height, width = (
        (size[axis] + 2 * padding[axis] - layer.dilation[axis] * (layer.kernel_size[axis] - 1) - 1)
        // layer.stride[axis]
        + 1
        for axis in (0, 1)
    )
    out, into = layer.weight.shape[:2]
    blocks = _blocks(layer, connections(layer, padding, size, (height, width)), x, height * width)
    weight = torch.cat([torch.cat(row, dim=1) for row in blocks], dim=0)
    bias = None if layer.bias is None else layer.bias.repeat(height * width)
    flat = x.permute(0, 2, 3, 1).reshape(len(x), size[0] * size[1] * into)
    y = F.linear(flat, weight, bias)
    return y.view(len(x), height, width, out).permute(0, 3, 1, 2)


def _blocks(
    layer: nn.Conv2d,
    taps: dict[tuple[int, int], list[tuple[int, int]]],
    x: Tensor,
    num_outputs: int,
) -> list[list[Tensor]]:
    """Weights [O, C] of each output position for each input position; zeros where no tap does."""
    nothing = layer.weight.new_zeros(layer.weight.shape[:2])
    blocks = [[nothing] * (x.shape[2] * x.shape[3]) for _ in range(num_outputs)]
    # one unbind, not a select per block: its backward writes the whole weight only once
    each = layer.weight.permute(2, 3, 0, 1).flatten(0, 1).unbind(0)
    for weight, pairs in zip(each, taps.values(), strict=True):
        for o, i in pairs:
            blocks[o][i] = weight
    return blocks
