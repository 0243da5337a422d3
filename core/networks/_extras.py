"""Families of networks out of optional packages, which take seconds to import and so wait.

A family is a module beside this one that fills ``extras`` when it is imported. Its names begin with
the name of the package.
"""

from __future__ import annotations

import importlib
import importlib.util
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from ..errors import InvalidInput
from ..registry import Entry, Registry
from ._registry import Build

FAMILIES = ("timm", "transformers")
MAX_PARTS = 20_000
"""Layers and parameters of one network; the largest that has weights somewhere has a fifth."""

extras: Registry[Build] = Registry("network")

REFUSALS = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError),
    *(RuntimeError, TypeError, ValueError),
)
"""What the packages raise on options that make no network; they have no error of their own."""


def find(name: object) -> Entry[Build] | None:
    """Return the entry of a family called ``name``; None if that is no family's name.

    Raises:
        InvalidInput: ``architecture_extra_missing`` if the package is not installed, or
            ``architecture_unknown``.
    """
    family = str(name).partition("/")[0]
    if family not in FAMILIES or f"{family}/" not in str(name):
        return None
    if not _is_installed(family):
        raise InvalidInput(
            "architecture_extra_missing",
            f"this service runs without {family}; its operator adds it with "
            f"pip install 'lethe[{family}]'",
        )
    _load(family)
    if name not in extras:
        raise InvalidInput("architecture_unknown", f"{family} has no such network for images")
    return extras[str(name)]


def installed() -> list[Entry[Build]]:
    """Return the entries of all families whose package is installed."""
    for family in FAMILIES:
        if _is_installed(family):
            _load(family)
    return list(extras)


@contextmanager
def refusing(max_parts: int = MAX_PARTS) -> Iterator[None]:
    """Refuse options that make no network, or one without end.

    Raises:
        InvalidInput: ``architecture_invalid``, or ``architecture_too_large`` as soon as there are
            more parts than ``max_parts``.
    """
    builder = threading.get_ident()
    count = 0

    def counted(_: nn.Module, __: str, ___: Any) -> None:
        nonlocal count
        count += threading.get_ident() == builder
        if count > max_parts:
            raise InvalidInput("architecture_too_large", f"the network has over {max_parts} parts")

    hooks = [
        register_module_module_registration_hook(counted),
        register_module_parameter_registration_hook(counted),
    ]
    try:
        yield
    except REFUSALS as error:
        said = str(error).partition("\n")[0][:200]
        raise InvalidInput("architecture_invalid", f"{type(error).__name__}: {said}") from None
    finally:
        for hook in hooks:
            hook.remove()


def _is_installed(family: str) -> bool:
    return importlib.util.find_spec(family) is not None


def _load(family: str) -> None:
    importlib.import_module(f"._{family}", __package__)
