"""Architectures: a name plus bounded options, never uploaded code. One file per architecture.

``parse`` reads a configuration, ``expected_shapes`` prices it without memory, ``build`` makes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from pydantic import TypeAdapter
from torch import nn

from ..errors import InvalidInput
from ..registry import Config, Entry, discover
from ..weights import DTYPE_NAMES
from . import _extras
from ._registry import Build, networks

discover(__name__, list(__path__))

if TYPE_CHECKING:
    NetworkConfig = Config
else:
    NetworkConfig = networks.union()

MAX_PARAMETERS = 2_000_000_000

_adapter: TypeAdapter[Any] = TypeAdapter(networks.union())

__all__ = [
    "MAX_PARAMETERS",
    "NetworkConfig",
    "build",
    "catalogue",
    "expected_shapes",
    "load_extras",
    "networks",
    "num_classes",
    "num_parameters",
    "parse",
]


def parse(raw: dict[str, Any]) -> Config:
    """Read an architecture: its ``name`` with its options.

    Raises:
        InvalidInput: ``architecture_unknown``, or ``architecture_extra_missing`` for one of a
            package that is not installed.
        pydantic.ValidationError: with one entry per wrong field.
    """
    name = raw.get("name")
    extra = _extras.find(name)
    if extra is not None:
        return extra.config.model_validate(raw)
    if isinstance(name, str) and name not in networks:
        raise InvalidInput("architecture_unknown", "no network has this name; see GET /networks")
    config: Config = _adapter.validate_python(raw)
    return config


def build(config: Config, seed: int | None = None) -> nn.Module:
    """Build the network with a random initialisation; the global generator is left as it was.

    Args:
        config: from ``parse``.
        seed: any int64; None draws from the global generator.

    Raises:
        InvalidInput: ``architecture_invalid`` if options contradict each other.
    """
    run = (_extras.find(config.name) or networks[config.name]).run
    if seed is None:
        return run(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return run(config)


def expected_shapes(
    config: Config, max_parameters: int = MAX_PARAMETERS
) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and safetensors dtype of every tensor a checkpoint must hold; takes no memory.

    Raises:
        InvalidInput: ``architecture_too_large`` or ``architecture_invalid``.
    """
    model = _on_meta(config)
    count = num_parameters(model)
    if count > max_parameters:
        raise InvalidInput(
            "architecture_too_large",
            f"the network has {count} parameters, at most {max_parameters} are accepted",
        )
    state = model.state_dict()
    if odd := [name for name, tensor in state.items() if tensor.dtype not in DTYPE_NAMES]:
        raise InvalidInput("architecture_invalid", f"{odd[0]} is of no type that is taken")
    return {
        name: (tuple(tensor.shape), DTYPE_NAMES[tensor.dtype]) for name, tensor in state.items()
    }


def num_parameters(model: nn.Module) -> int:
    """Count the parameters; buffers do not count, tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def num_classes(config: Config) -> int:
    """Width of the last layer, which every configuration names."""
    count: int = config.model_dump()["num_classes"]
    return count


def catalogue() -> list[dict[str, Any]]:
    """Name, summary, source and JSON Schema of every architecture, of installed extras too."""
    entries: list[Entry[Build]] = [*networks, *_extras.installed()]
    # A family is a thousand names of one configuration.
    schemas = {config: config.model_json_schema() for config in {entry.config for entry in entries}}
    return [
        {
            "name": entry.name,
            "summary": entry.summary,
            "source": entry.config.source,
            "schema": schemas[entry.config],
        }
        for entry in entries
    ]


def load_extras() -> None:
    """Import the installed optional packages, which takes seconds, so that no call waits."""
    _extras.installed()


def _on_meta(config: Config) -> nn.Module:
    try:
        with torch.device("meta"):
            return build(config)
    except RuntimeError as error:
        if "overflow" not in str(error):
            raise
        raise InvalidInput(
            "architecture_too_large", "a tensor of the network is beyond 64-bit sizes"
        ) from None
