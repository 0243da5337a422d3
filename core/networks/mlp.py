"""Multi-layer perceptron."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import nn

from ..registry import Config
from ._fields import Activation, Classes, Dropout, Width
from ._registry import networks

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}


class MLPConfig(Config):
    """Fully connected layers on features or flattened pixels."""

    name: Literal["mlp"] = "mlp"
    in_features: Width = Field(description="Numbers per record: features, or pixels x channels.")
    hidden: Annotated[tuple[Width, ...], Field(max_length=64)] = Field(
        (128,), description="Widths of the hidden layers, first to last."
    )
    num_classes: Classes = Field(description="Classes, i.e. width of the last layer.")
    activation: Activation = Field("relu", description="Activation after each hidden layer.")
    batch_norm: bool = Field(False, description="Batch norm before each activation.")
    dropout: Dropout = Field(0.0, description="Share of hidden units dropped while training.")
    source: ClassVar[str] = "Rumelhart, Hinton, Williams 1986, Nature 323, 533-536"


@networks
def mlp(config: MLPConfig) -> nn.Module:
    """Build the layers; images are flattened in the order channels, rows, columns."""
    layers: list[nn.Module] = [nn.Flatten()]
    width = config.in_features
    for hidden in config.hidden:
        layers.append(nn.Linear(width, hidden))
        if config.batch_norm:
            layers.append(nn.BatchNorm1d(hidden))
        layers.append(_ACTIVATIONS[config.activation]())
        if config.dropout:
            layers.append(nn.Dropout(config.dropout))
        width = hidden
    return nn.Sequential(*layers, nn.Linear(width, config.num_classes))
