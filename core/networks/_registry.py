"""The registry of architectures, apart so that every architecture can import it."""

from __future__ import annotations

from typing import Any, Protocol

from torch import nn

from ..registry import Registry


class Build(Protocol):
    """Build a network from its configuration."""

    __name__: str

    def __call__(self, config: Any, /) -> nn.Module: ...


networks: Registry[Build] = Registry("network")
