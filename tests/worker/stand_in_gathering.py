"""A runner whose audits, oracles and banks do what the batch size or the seed of the order says."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from core.checkpoints import Keeper
from worker import runner

FINDING = {
    "audit": "sanity",
    "measure": "told",
    "scope": "order",
    "value": 1.0,
    "unit": "1",
    "examples": 1,
}
CRASH, LIE, LINK = 13, 14, 15
"""Seeds that make the work misbehave."""


def audit(*, out: Path, report: Any, **order: Any) -> dict[str, Any]:
    """Return the order itself as the reason of a finding."""
    report("auditing", 0.5, None, None, {})
    _misbehave(order["seed"])
    if order["seed"] == LIE:
        return {"findings": [{"audit": "sanity"}]}
    told = {name: _plain(value) for name, value in order.items()}
    return {"findings": [FINDING | {"reason": json.dumps(told, sort_keys=True)}]}


def oracle(*, out: Path, report: Any, **order: Any) -> dict[str, Any]:
    """Write the order as the weights."""
    _misbehave(order["seed"])
    told = {name: _plain(value) for name, value in order.items()}
    content = json.dumps(told, sort_keys=True).encode()
    (out / "model.safetensors").write_bytes(content)
    digest = "0" * 64 if order["seed"] == LIE else hashlib.sha256(content).hexdigest()
    return {"weights": "model.safetensors", "digest": digest}


def bank(*, out: Path, report: Any, **order: Any) -> dict[str, Any]:
    """Write the order as the bank."""
    _misbehave(order["seed"])
    file = out / "bank.safetensors"
    if order["seed"] == LINK:
        file.symlink_to("/etc/passwd")
    else:
        told = {name: _plain(value) for name, value in order.items()}
        file.write_text(json.dumps(told, sort_keys=True))
    return {"bank": file.name, "models": 99 if order["seed"] == LIE else order["models"]}


def _misbehave(seed: int) -> None:
    if seed == CRASH:
        os.kill(os.getpid(), 9)


def _plain(value: Any) -> Any:
    """Show what the runner made of a value: paths are told from strings."""
    if isinstance(value, Keeper):
        return "keeper"
    if isinstance(value, Path):
        return f"path:{value}"
    return [_plain(each) for each in value] if isinstance(value, list) else value


if __name__ == "__main__":
    runner.main(lambda: {"audit": audit, "oracle": oracle, "bank": bank})
