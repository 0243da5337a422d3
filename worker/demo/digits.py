"""Real data for the demo: scikit-learn's digits as parquet, and a network trained on half.

``python -m worker.demo.digits FOLDER`` writes ``digits.parquet``, ``digits.safetensors`` and
``model.json``, the metadata of ``POST /models`` with ``DATASET`` where the dataset's id belongs.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from sklearn.datasets import load_digits

from core import networks, weights
from core.data import Dataset, Preprocessing
from core.device import choose
from core.ingest import ingest
from core.training import Recipe, fit

ARCHITECTURE: dict[str, Any] = {
    "name": "convnet",
    "in_channels": 1,
    "widths": [16, 32, 64],
    "num_classes": 10,
}
PREPROCESSING: dict[str, Any] = {
    "height": 8,
    "width": 8,
    "channels": 1,
    "scale": 1 / 255,
    "mean": [0.31],
    "std": [0.38],
}
RECIPE: dict[str, Any] = {
    "epochs": 25,
    "batch_size": 64,
    "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.0},
    "schedule": {"name": "one_cycle"},
    "seed": 7,
}


def write_dataset(path: Path, seed: int = 0) -> list[str]:
    """Write the 1 797 digits as 8x8 grey PNG records, every second one holdout.

    Returns:
        Record ids of the training half.
    """
    digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.target))
    holdout = np.zeros(len(order), dtype=bool)
    holdout[order[: len(order) // 2]] = True
    ids = [f"digit-{i:04d}" for i in range(len(order))]
    table = pa.table(
        {
            "id": ids,
            "label": pa.array(digits.target, pa.int64()),
            "image": pa.array([_png(image) for image in digits.images], pa.binary()),
            "subject": [f"sheet-{i // 10:03d}" for i in range(len(order))],
            "split": ["holdout" if held else "train" for held in holdout],
        }
    )
    pq.write_table(table, path)
    return [record for record, held in zip(ids, holdout, strict=True) if not held]


def _png(image: np.ndarray) -> bytes:
    """Encode one digit, grey values 0 to 16, as PNG."""
    buffer = io.BytesIO()
    Image.fromarray((image * (255 / 16)).round().astype(np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def train(source: Path, scratch: Path, path: Path) -> None:
    """Train the demo's network on the training half of ``source`` and write its weights."""
    ingest(source=source, out=scratch, max_records=10_000)
    dataset = Dataset.open(scratch / "records.parquet")
    preprocessing = Preprocessing.model_validate(PREPROCESSING)
    records = dataset.records(dataset.rows_in("train"), preprocessing)
    recipe = Recipe.model_validate(RECIPE)
    torch.set_num_threads(1)  # so small a network only waits for a second thread
    model = networks.build(networks.parse(ARCHITECTURE), seed=recipe.seed)
    fit(model, records, recipe, seed=recipe.seed, device=choose("auto"))
    weights.save(model, path)


def metadata(dataset: str) -> dict[str, Any]:
    """Metadata of ``POST /models`` for the demo's network."""
    return {
        "name": "digits-convnet",
        "architecture": ARCHITECTURE,
        "preprocessing": PREPROCESSING,
        "recipe": RECIPE,
        "dataset": dataset,
        "holdout": dataset,
    }


def main(folder: Path) -> None:
    """Write data, weights and metadata into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    write_dataset(folder / "digits.parquet")
    with tempfile.TemporaryDirectory() as scratch:
        train(folder / "digits.parquet", Path(scratch), folder / "digits.safetensors")
    (folder / "model.json").write_text(json.dumps(metadata("DATASET"), indent=2))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
