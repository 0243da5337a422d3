"""Every non-quantised classifier of torchvision, by name, without weights or auxiliary heads."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import nullcontext
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn
from torch.overrides import TorchFunctionMode

from ..registry import Config, Entry
from ._fields import Channels, Classes
from ._registry import networks

_PREFIX = "torchvision/"
_MODELS = """
    alexnet convnext_base convnext_large convnext_small convnext_tiny
    densenet121 densenet161 densenet169 densenet201
    efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 efficientnet_b5
    efficientnet_b6 efficientnet_b7 efficientnet_v2_l efficientnet_v2_m efficientnet_v2_s googlenet
    inception_v3 maxvit_t mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3
    mobilenet_v2 mobilenet_v3_large mobilenet_v3_small
    regnet_x_16gf regnet_x_1_6gf regnet_x_32gf regnet_x_3_2gf regnet_x_400mf regnet_x_800mf
    regnet_x_8gf regnet_y_128gf regnet_y_16gf regnet_y_1_6gf regnet_y_32gf regnet_y_3_2gf
    regnet_y_400mf regnet_y_800mf regnet_y_8gf resnet101 resnet152 resnet18 resnet34 resnet50
    resnext101_32x8d resnext101_64x4d resnext50_32x4d
    shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0
    squeezenet1_0 squeezenet1_1 swin_b swin_s swin_t swin_v2_b swin_v2_s swin_v2_t
    vgg11 vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn
    vit_b_16 vit_b_32 vit_h_14 vit_l_16 vit_l_32 wide_resnet101_2 wide_resnet50_2
"""
_NAMES = tuple(_PREFIX + name for name in _MODELS.split())
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


def _shelf() -> ModuleType:
    """Return ``torchvision.models``, on first use: its import takes as long as that of torch."""
    # What it makes for itself must have values, also where networks are built on the meta device.
    with torch.device("cpu"):
        return importlib.import_module("torchvision.models")


def _build(config: TorchvisionConfig) -> nn.Module:
    models = _shelf()
    name = config.name.removeprefix(_PREFIX)
    options = {"num_classes": config.num_classes, **_OPTIONS.get(name, {})}
    with _NumbersOnHost() if name.startswith("regnet") else nullcontext():
        model: nn.Module = models.get_model(name, weights=None, **options)
    return model


def _build_resnet(config: TorchvisionResNetConfig) -> nn.Module:
    models = _shelf()
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
