"""Whether a checkpoint fits its architecture, from the header alone: no tensor is read.

What ``torch.save`` wrote has no header that could be read safely here: its tensors are compared
once the runner has converted it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError

from core import batchnorm, fit, formats, networks
from core.errors import InvalidInput, UnknownName
from core.header import read_header

from ..store.errors import ServiceError, Unacceptable, Unsupported
from ..store.session import settings
from .validation import refusal


class Network(NamedTuple):
    """What is known of a network before a tensor of it is read."""

    architecture: dict[str, Any]
    """With all defaults filled in."""
    num_parameters: int
    has_batchnorm: bool


def check(path: Path, raw: dict[str, Any]) -> Network:
    """Read an architecture, and compare the tensors of a safetensors file with it.

    Args:
        path: the file; of one that has to be converted, only the architecture is checked.
        raw: architecture as given: a name and its options.

    Raises:
        Unacceptable: with the code of what is wrong.
    """
    config = _parse(raw)
    try:
        expected = networks.expected_shapes(config, settings().max_parameters)
        if formats.kind(path) == "safetensors":
            fit.check(read_header(path).tensors, expected)
    except InvalidInput as error:
        raise _refused(error) from None
    with torch.device("meta"):
        model = networks.build(config)
    return Network(
        config.model_dump(mode="json"),
        networks.num_parameters(model),
        batchnorm.has_batchnorm(model),
    )


def kind(path: Path, declared: str | None) -> formats.Kind:
    """Return the format of a model file.

    Args:
        path: the file.
        declared: what it is said to be; None takes what it is.

    Raises:
        Unsupported: for formats that are never taken.
        Unacceptable: ``media_type_mismatch`` if it is something else than was said, or what
            reading its header as safetensors raises.
    """
    try:
        found = formats.kind(path)
        if declared is not None and declared != found:
            read_header(path)  # finds the better words, if there are any
            raise InvalidInput("media_type_mismatch", f"the file is {found}, not {declared}")
    except InvalidInput as error:
        raise _refused(error) from None
    return found


def _refused(error: InvalidInput) -> ServiceError:
    refusal = Unsupported if error.code in formats.UNSUPPORTED else Unacceptable
    return refusal(error.code, error.detail)


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
