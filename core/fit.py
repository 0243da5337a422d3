"""Whether tensors fit an architecture, by names, shapes and types alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .errors import InvalidInput
from .header import TensorInfo

MOST_NAMES = 10

Expected = Mapping[str, tuple[tuple[int, ...], str]]
"""Shape and safetensors dtype of every tensor, as ``networks.expected_shapes`` returns them."""


def check(found: Mapping[str, TensorInfo], expected: Expected) -> None:
    """Refuse tensors that are not exactly those of the network.

    Raises:
        InvalidInput: ``model_keys_mismatch``, ``model_shape_mismatch`` or ``model_dtype_mismatch``.
    """
    if found.keys() != expected.keys():
        raise InvalidInput(
            "model_keys_mismatch",
            f"Missing: {_some(expected.keys() - found.keys())}. "
            f"Unexpected: {_some(found.keys() - expected.keys())}.",
        )
    shapes = []
    types = []
    for name, (shape, dtype) in sorted(expected.items()):
        tensor = found[name]
        if tuple(tensor.shape) != tuple(shape):
            shapes.append(f"{name} is {list(tensor.shape)}, not {list(shape)}")
        elif tensor.dtype != dtype:
            types.append(f"{name} is {tensor.dtype}, not {dtype}")
    if shapes:
        raise InvalidInput("model_shape_mismatch", f"{_some(shapes)}.")
    if types:
        raise InvalidInput("model_dtype_mismatch", f"{_some(types)}.")


def _some(names: Iterable[str]) -> str:
    """Return the first few names, and how many more there are."""
    ordered = sorted(names)
    more = len(ordered) - MOST_NAMES
    listed = ", ".join(ordered[:MOST_NAMES]) or "none"
    return f"{listed} and {more} more" if more > 0 else listed
