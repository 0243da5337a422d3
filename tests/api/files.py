"""Small files, made in code: parquet, and safetensors good and bad."""

from __future__ import annotations

import io
import json
import struct
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save

FEATURES = 4
CLASSES = 2
ARCHITECTURE = {"name": "linear", "in_features": FEATURES, "num_classes": CLASSES}
PARAMETERS = CLASSES * FEATURES + CLASSES

RECIPE = {"epochs": 1, "batch_size": 8, "optimizer": {"name": "sgd", "lr": 0.1}}


def parquet(records: int = 12) -> bytes:
    """A few records with features; the last two are holdout."""
    table = pa.table(
        {
            "id": [f"r{n}" for n in range(records)],
            "label": [n % CLASSES for n in range(records)],
            "features": [[float(n)] * FEATURES for n in range(records)],
        }
    )
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def weights(**changes: np.ndarray) -> bytes:
    """A checkpoint of ``ARCHITECTURE``."""
    tensors = {
        "1.weight": np.zeros((CLASSES, FEATURES), dtype=np.float32),
        "1.bias": np.zeros(CLASSES, dtype=np.float32),
    }
    return save(tensors | changes)


def framed(header: bytes, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A safetensors file of this header, whose announced length may be a lie."""
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def tensors(header: dict[str, Any], data: bytes = b"") -> bytes:
    """A safetensors file with this header."""
    return framed(json.dumps(header).encode(), data)


def one(shape: list[Any], start: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    """The header entry of one tensor."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
