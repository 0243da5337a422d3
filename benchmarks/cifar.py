"""CIFAR-10 records and the memorised ResNet-18, or stand-ins of the same shape without them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import nn

from benchmarks.real_cifar import PREPROCESSING
from core import networks, weights
from core.data import Preprocessing, Records
from core.images import decode

TRAIN = "cifar10-train.parquet"
TEST = "cifar10-test.parquet"
CHECKPOINT = "resnet18-cifar10.safetensors"


def records(data: Path, name: str, count: int, seed: int = 0) -> Records:
    """Return ``count`` records drawn with a seed from a file of ``data``, or noise without it."""
    preprocessing = Preprocessing.model_validate(PREPROCESSING)
    random = np.random.default_rng(seed)
    path = data / name
    if not path.exists():
        images = random.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
        labels = random.integers(0, 10, count)
        rows = np.arange(count)
    else:
        table = pq.read_table(path, columns=["image", "label"])
        rows = random.permutation(len(table))[:count]
        drawn = table.take(rows)
        images = decode(drawn["image"].to_pylist(), height=32, width=32, channels=3, resize=None)
        labels = drawn["label"].to_numpy()
    return Records(
        images=torch.from_numpy(images),
        labels=torch.from_numpy(labels.astype(np.int64)),
        rows=torch.from_numpy(rows.astype(np.int64)),
        preprocessing=preprocessing,
    )


def model(data: Path) -> nn.Module:
    """Return the memorised ResNet-18 in eval mode; freshly initialised without the checkpoint."""
    config = networks.parse({"name": "torchvision/resnet18", "num_classes": 10})
    network = networks.build(config, seed=0)
    if (data / CHECKPOINT).exists():
        weights.load(data / CHECKPOINT, network)
    return network.eval()


def describe(data: Path) -> str:
    """Say which of the two it was."""
    real = all((data / name).exists() for name in (TRAIN, TEST, CHECKPOINT))
    return "CIFAR-10 and its memorised ResNet-18" if real else "generated records, fresh ResNet-18"
