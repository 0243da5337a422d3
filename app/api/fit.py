"""Whether a checkpoint fits its architecture, from the header alone: no tensor is read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from core import networks
from core.errors import InvalidInput, UnknownName
from core.header import Header, read_header

from ..store.errors import Unacceptable
from ..store.session import settings
from .validation import refusal

MOST_NAMES = 10


def check(path: Path, raw: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Compare the tensors of a safetensors file with an architecture.

    Args:
        path: the file.
        raw: architecture as given: a name and its options.

    Returns:
        The architecture with all defaults filled in, and its number of parameters.

    Raises:
        Unacceptable: with the code of what is wrong.
    """
    config = _parse(raw)
    try:
        expected = networks.expected_shapes(config, settings().max_parameters)
        header = read_header(path)
    except InvalidInput as error:
        raise Unacceptable(error.code, error.detail) from None
    _compare_names(set(header.tensors), set(expected))
    _compare_shapes(header, expected)
    with torch.device("meta"):
        num_parameters = networks.num_parameters(networks.build(config))
    return config.model_dump(mode="json"), num_parameters


def _parse(raw: dict[str, Any]) -> Any:
    try:
        return networks.parse(raw)
    except ValidationError as error:
        errors = error.errors(include_input=False, include_url=False)
        raise refusal(errors, raw, "/architecture") from None
    except (InvalidInput, UnknownName) as error:
        code = error.code if isinstance(error, InvalidInput) else "architecture_unknown"
        raise Unacceptable(code, str(error), errors=_at_architecture(code, str(error))) from None


def _at_architecture(code: str, message: str) -> list[dict[str, str]]:
    return [{"pointer": "/architecture", "message": message, "code": code}]


def _compare_names(found: set[str], wanted: set[str]) -> None:
    if found != wanted:
        raise Unacceptable(
            "model_keys_mismatch",
            f"Missing: {_some(wanted - found)}. Unexpected: {_some(found - wanted)}.",
        )


def _compare_shapes(header: Header, expected: dict[str, tuple[tuple[int, ...], str]]) -> None:
    shapes = []
    types = []
    for name, (shape, dtype) in sorted(expected.items()):
        tensor = header.tensors[name]
        if tuple(tensor.shape) != tuple(shape):
            shapes.append(f"{name} is {list(tensor.shape)}, not {list(shape)}")
        elif tensor.dtype != dtype:
            types.append(f"{name} is {tensor.dtype}, not {dtype}")
    if shapes:
        raise Unacceptable("model_shape_mismatch", f"{_some(shapes)}.")
    if types:
        raise Unacceptable("model_dtype_mismatch", f"{_some(types)}.")


def _some(names: Iterable[str]) -> str:
    """Return the first few names, and how many more there are."""
    ordered = sorted(names)
    more = len(ordered) - MOST_NAMES
    listed = ", ".join(ordered[:MOST_NAMES]) or "none"
    return f"{listed} and {more} more" if more > 0 else listed
