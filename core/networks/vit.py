"""Small vision transformer of plain layers, so that per-sample gradients have closed forms."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InvalidInput
from ..registry import Config
from ._fields import Channels, Classes, Dropout, Side, Width
from ._registry import networks


class ViTConfig(Config):
    """Small vision transformer: patches, pre-norm encoder blocks, mean pooling."""

    name: Literal["vit"] = "vit"
    image_size: Side = Field(32, description="Height and width of the images in pixels.")
    patch_size: Side = Field(4, description="Height and width of a patch; divides image_size.")
    in_channels: Channels = Field(3, description="Channels of the images.")
    hidden: Width = Field(128, description="Width of a token; a multiple of heads.")
    depth: Annotated[int, Field(ge=1, le=64)] = Field(4, description="Encoder blocks.")
    heads: Annotated[int, Field(ge=1, le=1024)] = Field(4, description="Attention heads.")
    mlp_ratio: Annotated[int, Field(ge=1, le=16)] = Field(
        2, description="Width of a block's perceptron over the width of a token."
    )
    dropout: Dropout = Field(0.0, description="Share dropped of each block's output in training.")
    num_classes: Classes = Field(description="Classes, i.e. width of the last layer.")
    source: ClassVar[str] = "Dosovitskiy et al., ICLR 2021, arXiv:2010.11929"


@networks
def vit(config: ViTConfig) -> nn.Module:
    """Build the network; refuse widths and patches that do not divide."""
    if config.hidden % config.heads:
        raise InvalidInput("architecture_invalid", "hidden must be a multiple of heads")
    if config.image_size % config.patch_size:
        raise InvalidInput("architecture_invalid", "image_size must be a multiple of patch_size")
    return ViT(config)


class ViT(nn.Module):
    """Tokens of patches with learned positions, encoder blocks, norm, mean, linear head."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        num_patches = (config.image_size // config.patch_size) ** 2
        self.embed = nn.Linear(config.in_channels * config.patch_size**2, config.hidden)
        self.position = nn.Parameter(torch.zeros(num_patches, config.hidden))
        self.blocks = nn.Sequential(*(EncoderBlock(config) for _ in range(config.depth)))
        self.norm = nn.LayerNorm(config.hidden)
        self.head = nn.Linear(config.hidden, config.num_classes)
        nn.init.normal_(self.position, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits[N, num_classes] of images[N, C, H, W]."""
        size = self.patch_size
        patches = F.unfold(x, kernel_size=size, stride=size).transpose(1, 2)
        tokens = self.norm(self.blocks(self.embed(patches) + self.position))
        logits: Tensor = self.head(tokens.mean(dim=1))
        return logits


class EncoderBlock(nn.Module):
    """Self-attention and a perceptron, each after a norm and beside a shortcut."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        width, inner = config.hidden, config.hidden * config.mlp_ratio
        self.heads = config.heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens[N, T, hidden] of tokens[N, T, hidden]."""
        x = x + self.drop(self.proj(self._attend(self.norm1(x))))
        tokens: Tensor = x + self.drop(self.fc2(F.gelu(self.fc1(self.norm2(x)))))
        return tokens

    def _attend(self, x: Tensor) -> Tensor:
        # spelled out: the fused kernel has no batching rule for per-sample gradients on the CPU
        count, length, width = x.shape
        qkv = self.qkv(x).reshape(count, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(dim=-1)
        mixed: Tensor = (weights @ v).transpose(1, 2).reshape(count, length, width)
        return mixed
