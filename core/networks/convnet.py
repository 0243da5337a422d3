"""Small convolutional network."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import nn

from ..registry import Config
from ._fields import Channels, Classes, Width
from ._registry import networks


class ConvNetConfig(Config):
    """Blocks of 3x3 convolution, norm, ReLU and 2x2 average pooling, then one linear layer."""

    name: Literal["convnet"] = "convnet"
    in_channels: Channels = Field(3, description="Channels of the images.")
    widths: Annotated[tuple[Width, ...], Field(min_length=1, max_length=12)] = Field(
        (32, 64, 128), description="Channels of the blocks; each block halves height and width."
    )
    norm: Literal["batch", "group", "none"] = Field("batch", description="Norm of each block.")
    num_classes: Classes = Field(description="Classes, i.e. width of the last layer.")
    source: ClassVar[str] = "LeCun, Bottou, Bengio, Haffner 1998, Proc. IEEE 86(11)"


@networks
def convnet(config: ConvNetConfig) -> nn.Module:
    """Build the blocks; odd sizes are rounded up when halved, so any image is large enough."""
    layers: list[nn.Module] = []
    channels = config.in_channels
    for width in config.widths:
        has_bias = config.norm == "none"
        layers.append(nn.Conv2d(channels, width, 3, padding=1, bias=has_bias))
        if config.norm == "batch":
            layers.append(nn.BatchNorm2d(width))
        elif config.norm == "group":
            layers.append(nn.GroupNorm(1, width))
        layers += [nn.ReLU(), nn.AvgPool2d(2, ceil_mode=True)]
        channels = width
    head = nn.Linear(channels, config.num_classes)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
