"""A runner whose ``ingest`` does what the first word of the upload says."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

from core.errors import Interrupted, InvalidInput
from worker import runner

RESULT = {
    "num_train": 1,
    "num_holdout": 1,
    "num_classes": 2,
    "modality": "features",
    "details": {"num_features": 2},
}


def ingest(*, source: Path, out: Path, max_records: int, report: Any) -> dict[str, Any]:
    report("resolving", 0.5, 1.0, None, {"rows": 2.0})
    (out / "records.parquet").write_bytes(b"canonical")
    rows = '["a", 0, "train", "someone"]\n["b", 1, "holdout", null]\n'
    (out / "index.jsonl").write_text(rows)
    match source.read_text().split():
        case ["refuse"]:
            raise InvalidInput("dataset_empty", "the dataset holds no records")
        case ["deviceless"]:
            raise InvalidInput("device_unavailable", "this machine has no device cuda:99")
        case ["crash" | "stop" as way]:
            _leave(way)
        case ["hang" | "nap" | "linger" as way]:
            _stay(way)
        case ["link"]:
            (out / "records.parquet").unlink()
            (out / "records.parquet").symlink_to("/etc/passwd")
        case ["hardlink"]:
            (out / "records.parquet").unlink()
            (out / "other").write_bytes(b"somebody else's")
            (out / "records.parquet").hardlink_to(out / "other")
        case ["nothing"]:
            (out / "records.parquet").unlink()
        case ["nonsense"]:
            (out / "index.jsonl").write_text('["a", "zero", "train", "someone"]\n')
        case ["short"]:
            return {"num_train": 1}
    return RESULT


def _stay(way: str) -> None:
    if way == "linger":
        subprocess.Popen(["sleep", "600"])
    else:
        time.sleep(600 if way == "hang" else 0.8)


def _leave(way: str) -> None:
    if way == "stop":
        raise Interrupted
    os.kill(os.getpid(), 9)


if __name__ == "__main__":
    runner.main(lambda: {"ingest": ingest})
