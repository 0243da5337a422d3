"""Softmax regression."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import nn

from ..registry import Config
from ._fields import Classes, Width
from ._registry import networks


class LinearConfig(Config):
    """One linear layer on features or flattened pixels (softmax regression)."""

    name: Literal["linear"] = "linear"
    in_features: Width = Field(description="Numbers per record: features, or pixels x channels.")
    num_classes: Classes = Field(description="Classes, i.e. width of the last layer.")
    source: ClassVar[str] = "Cox 1958, JRSS B 20(2), The regression analysis of binary sequences"


@networks
def linear(config: LinearConfig) -> nn.Module:
    """Build the layer; images are flattened in the order channels, rows, columns."""
    return nn.Sequential(nn.Flatten(), nn.Linear(config.in_features, config.num_classes))
