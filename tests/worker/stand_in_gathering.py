"""A runner whose audits, oracles and banks do what the batch size or the seed of the order says."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

from worker import runner

FINDING = {
    "audit": "sanity",
    "measure": "told",
    "scope": "order",
    "value": 1.0,
    "unit": "1",
    "examples": 1,
}
CRASH, LIE, LINK, TRAIN = 13, 14, 15, 16
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
    """Write the order as the weights; or train for ever, from what was kept before if there is."""
    _misbehave(order["seed"])
    _go_on(order, report)
    told = {name: _plain(value) for name, value in order.items()}
    content = json.dumps(told, sort_keys=True).encode()
    (out / "model.safetensors").write_bytes(content)
    digest = "0" * 64 if order["seed"] == LIE else hashlib.sha256(content).hexdigest()
    return {"weights": "model.safetensors", "digest": digest}


def bank(*, out: Path, report: Any, **order: Any) -> dict[str, Any]:
    """Write the order as the bank; or train for ever, as an oracle."""
    _misbehave(order["seed"])
    _go_on(order, report)
    file = out / "bank.safetensors"
    if order["seed"] == LINK:
        file.symlink_to("/etc/passwd")
    else:
        told = {name: _plain(value) for name, value in order.items()}
        file.write_text(json.dumps(told, sort_keys=True))
    return {"bank": file.name, "models": 99 if order["seed"] == LIE else order["models"]}


def _go_on(order: dict[str, Any], report: Any) -> None:
    """If the seed says so, train for ever, or see that it was done before."""
    keeper = order.pop("keeper")
    if order["seed"] == TRAIN:
        found = keeper.restore("this")
        if found is None:
            _train(keeper, report)
        assert found.numbers == {"step": 7}


def _train(keeper: Any, report: Any) -> None:
    """Do nothing until it is asked to stop."""
    import torch  # only the tests that need it wait for it

    from core.checkpoints import State

    with keeper.training():
        report("training", 0.5, None, None, {})
        while not keeper.is_due:
            time.sleep(0.01)
        keeper.save("this", State({"weight": torch.ones(3)}, {"step": 7}))


def _misbehave(seed: int) -> None:
    if seed == CRASH:
        os.kill(os.getpid(), 9)


def _plain(value: Any) -> Any:
    """Show what the runner made of a value: a path by the file that it leads to."""
    if isinstance(value, Path):
        return f"file:{value.stat().st_ino}"
    return [_plain(each) for each in value] if isinstance(value, list) else value


if __name__ == "__main__":
    runner.main(lambda: {"audit": audit, "oracle": oracle, "bank": bank})
