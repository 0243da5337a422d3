from __future__ import annotations

from pathlib import Path

import pytest

from worker.demo import digits


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the model was trained: upload and weights of the digits, and ``records.parquet``."""
    folder = tmp_path_factory.mktemp("home")
    digits.write_dataset(folder / "digits.parquet")
    digits.train(folder / "digits.parquet", folder, folder / "digits.safetensors")
    return folder
