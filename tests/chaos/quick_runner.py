"""A runner without torch: it "retrains" for 0.2 s, and keeps a checkpoint on its way."""

from __future__ import annotations

import hashlib
import shutil
import time
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file, save_file

from worker import runner

SECONDS = 0.2


def prepare(*, out: Path, report: Any, **_: Any) -> dict[str, Any]:
    report("measuring", 0.5, None, None, {})
    return {"num_parameters": 1, "findings": [], "importance": None}


def unlearn(*, out: Path, weights: Path, keeper: Any, report: Any, **_: Any) -> dict[str, Any]:
    """Hand over the parent's weights, shifted a little."""
    report("unlearning", 0.0, None, None, {})
    kept = out / "checkpoint-1.safetensors"
    shutil.copy(weights, kept)
    keeper._announce(kept.name, digest(kept))  # its own writing loads torch
    time.sleep(SECONDS)
    report("unlearning", 0.5, None, None, {})
    file = out / "model.safetensors"
    save_file({name: tensor + 1e-3 for name, tensor in load_file(weights).items()}, file)
    rung = {
        "index": 0,
        "unlearner": {"name": "retrain"},
        "exact": True,
        "status": "published",
        "reason": "a stand-in",
    }
    return {
        "outcome": "erased_exact",
        "published": 0,
        "rungs": [rung],
        "weights": file.name,
        "digest": digest(file),
        "code": None,
        "reason": "a stand-in",
    }


def digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


if __name__ == "__main__":
    runner.main(lambda: {"prepare": prepare, "unlearn": unlearn})
