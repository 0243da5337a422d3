"""Every non-quantised classifier of torchvision, by name, without weights or auxiliary heads."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn
from torch.overrides import TorchFunctionMode
from torchvision import models

from ..registry import Config, Entry
from ._fields import Channels, Classes
from ._registry import networks

_PREFIX = "torchvision/"
_NAMES = tuple(_PREFIX + name for name in models.list_models(module=models))
_RESNETS = tuple(name for name in _NAMES if "resnet" in name or "resnext" in name)
_OTHERS = tuple(name for name in _NAMES if name not in _RESNETS)

_OPTIONS: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}

if TYPE_CHECKING:
    ResNetName = str
    OtherName = str
else:
    ResNetName = Literal[_RESNETS]
    OtherName = Literal[_OTHERS]


class TorchvisionConfig(Config):
    """Image classifier of torchvision, unmodified but for the number of classes."""

    name: OtherName
    num_classes: Classes = Field(description="Classes, i.e. width of the last layer.")
    source: ClassVar[str] = "torchvision.models"


class TorchvisionResNetConfig(Config):
    """Residual network of torchvision, with a choice of stem and input channels."""

    name: ResNetName
    num_classes: Classes = Field(description="Classes, i.e. width of the last layer.")
    in_channels: Channels = Field(3, description="Channels of the images.")
    stem: Literal["imagenet", "cifar"] = Field(
        "imagenet",
        description="First layers: 7x7 with stride 2 and pooling, or 3x3 for small images.",
    )
    source: ClassVar[str] = "torchvision.models; He et al., CVPR 2016, arXiv:1512.03385"


class _NumbersOnHost(TorchFunctionMode):
    """RegNet computes its widths with tensors, which must have values on the meta device too."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in (torch.arange, torch.tensor):
            return func(*args, **{"device": "cpu", **(kwargs or {})})
        return func(*args, **(kwargs or {}))


def _build(config: TorchvisionConfig) -> nn.Module:
    name = config.name.removeprefix(_PREFIX)
    options = {"num_classes": config.num_classes, **_OPTIONS.get(name, {})}
    with _NumbersOnHost() if name.startswith("regnet") else nullcontext():
        model: nn.Module = models.get_model(name, weights=None, **options)
    return model


def _build_resnet(config: TorchvisionResNetConfig) -> nn.Module:
    name = config.name.removeprefix(_PREFIX)
    model = models.get_model(name, weights=None, num_classes=config.num_classes)
    assert isinstance(model, models.ResNet)
    if config.stem == "cifar":
        model.conv1 = nn.Conv2d(config.in_channels, 64, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    elif config.in_channels != 3:
        model.conv1 = nn.Conv2d(config.in_channels, 64, 7, stride=2, padding=3, bias=False)
    if config.stem == "cifar" or config.in_channels != 3:
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    built: nn.Module = model
    return built


for _name in _OTHERS:
    _summary = f"torchvision's {_name.removeprefix(_PREFIX)} classifier."
    networks.add(Entry(_name, _summary, TorchvisionConfig, _build))
for _name in _RESNETS:
    _summary = f"torchvision's {_name.removeprefix(_PREFIX)} classifier, with a choice of stem."
    networks.add(Entry(_name, _summary, TorchvisionResNetConfig, _build_resnet))
