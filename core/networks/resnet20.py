"""The twenty-layer residual network for small images."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..registry import Config
from ._fields import Channels, Classes, Width
from ._registry import networks


class ResNet20Config(Config):
    """Residual network of 20 layers for images of about 32x32 (0.27 M parameters)."""

    name: Literal["resnet20"] = "resnet20"
    in_channels: Channels = Field(3, description="Channels of the images.")
    width: Width = Field(16, description="Channels of the first stage; doubled twice.")
    num_classes: Classes = Field(description="Classes, i.e. width of the last layer.")
    source: ClassVar[str] = "He, Zhang, Ren, Sun, CVPR 2016, arXiv:1512.03385, section 4.2"


@networks
def resnet20(config: ResNet20Config) -> nn.Module:
    """Build the network; shortcuts that change the width are 1x1 convolutions (option B)."""
    return ResNet20(config.in_channels, config.width, config.num_classes)


class ResNet20(nn.Module):
    """Three stages of three blocks."""

    def __init__(self, in_channels: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.stage1 = _stage(width, width, stride=1)
        self.stage2 = _stage(width, 2 * width, stride=2)
        self.stage3 = _stage(2 * width, 4 * width, stride=2)
        self.fc = nn.Linear(4 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits[N, num_classes] of images[N, C, H, W]."""
        x = F.relu(self.bn(self.conv(x)))
        x = self.stage3(self.stage2(self.stage1(x)))
        logits: Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            projection = nn.Conv2d(channels, width, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return features at the block's width and stride."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


def _stage(channels: int, width: int, stride: int) -> nn.Sequential:
    rest = [Block(width, width, 1) for _ in range(2)]
    return nn.Sequential(Block(channels, width, stride), *rest)
