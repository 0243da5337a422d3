"""Image classifiers of timm, by name, without weights: nothing is ever downloaded."""

from __future__ import annotations

from typing import Any, ClassVar

import timm
from pydantic import Field, field_validator
from torch import nn

from ..errors import InvalidInput
from ..registry import Config, Entry
from ._extras import extras, refusing
from ._fields import Channels, Classes, Dropout, Side
from ._options import Options

_PREFIX = "timm/"
ALLOWED = frozenset(
    {
        *("base_width", "block_size", "cardinality", "class_token", "depth", "depths", "dims"),
        *("embed_dim", "embed_dims", "global_pool", "init_values", "layers", "mlp_ratio"),
        *("num_heads", "patch_size", "qkv_bias", "reg_tokens", "stem_width", "window_size"),
    }
)
"""Options of timm that say how large a network is, or what it is made of."""


class TimmConfig(Config):
    """Image classifier of timm, with a choice of channels and sizes."""

    name: str
    num_classes: Classes = Field(description="Classes, i.e. width of the last layer.")
    in_channels: Channels = Field(3, description="Channels of the images.")
    image_size: Side | None = Field(
        None,
        description="Height and width of the images in pixels, for networks that are built for "
        "one size; null takes the usual one.",
    )
    drop_rate: Dropout = Field(0.0, description="Share dropped before the last layer in training.")
    drop_path_rate: Dropout = Field(
        0.0, description="Share of residual branches dropped in training."
    )
    options: Options = Field(
        default_factory=dict,
        description="`model_args` of timm's config.json, without the above: "
        + ", ".join(sorted(ALLOWED))
        + ".",
    )
    source: ClassVar[str] = "Wightman, github.com/huggingface/pytorch-image-models"

    @field_validator("options")
    @classmethod
    def _known(cls, options: dict[str, Any]) -> dict[str, Any]:
        if unknown := sorted(options.keys() - ALLOWED):
            raise ValueError(f"not taken: {', '.join(unknown)[:200]}")
        return options


def _build(config: TimmConfig) -> nn.Module:
    options: dict[str, Any] = {
        "num_classes": config.num_classes,
        "in_chans": config.in_channels,
        "img_size": config.image_size,
        # left out where there is none: some networks do not know them
        "drop_rate": config.drop_rate or None,
        "drop_path_rate": config.drop_path_rate or None,
        **config.options,
    }
    name = config.name.removeprefix(_PREFIX)
    with refusing():
        model: nn.Module = timm.create_model(name, pretrained=False, **options)
    if config.image_size is not None and not _is_of_one_size(model):
        # timm drops the option without a word
        raise InvalidInput(
            "architecture_invalid", "this network takes images of any size: leave out image_size"
        )
    return model


def _is_of_one_size(model: nn.Module) -> bool:
    about: Any = model.pretrained_cfg
    return bool(about.get("fixed_input_size"))


# Spelled-out attention: the fused kernel has no batching rule for per-sample gradients on the CPU.
timm.layers.set_fused_attn(False)
for _name in timm.list_models():
    extras.add(Entry(_PREFIX + _name, f"timm's {_name} classifier.", TimmConfig, _build))
