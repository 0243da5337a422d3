"""A reference bank in a real runner: interrupted in the midst of a model, and gone on with."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import pytest
import torch

from core.bank import load
from core.bank_job import BANK_FILE, bank
from core.ingest import ingest
from tests.core import cases
from tests.worlds import write_dataset
from worker.protocol import Checkpoint, Done, Interrupted, Progress
from worker.supervisor import Runner

WORLD = cases.small_world()


@pytest.mark.slow
def test_an_interrupted_bank_is_the_one_that_was_not(tmp_path: Path) -> None:
    ingest(source=write_dataset(WORLD, tmp_path / "upload"), out=tmp_path, max_records=10_000)
    first = start(tmp_path, None)
    try:
        kept, at = interrupted(first)
        found = tmp_path / kept.file
        (first.out / kept.file).rename(found)
    finally:
        first.close()
    assert at > 0.25, "the first model is done"
    second = start(tmp_path, found)
    try:
        began_at = started(second)
        made = load(second.out / BANK_FILE)
    finally:
        second.close()
    assert began_at >= at, "it began again"
    (tmp_path / "whole").mkdir()
    bank(**arguments(tmp_path, tmp_path / "whole"))
    whole = load(tmp_path / "whole" / BANK_FILE)
    assert made.made == whole.made
    for name in ("trained_on", "train_margins", "judging_margins"):
        assert torch.equal(getattr(made, name), getattr(whole, name))


def start(folder: Path, found: Path | None) -> Runner:
    scratch = folder / secrets.token_hex(4)
    scratch.mkdir()
    runner = Runner(scratch, threads=1)
    lent = runner.inbox / "records.parquet"
    lent.write_bytes((folder / "records.parquet").read_bytes())
    if found is not None:
        found = found.rename(runner.inbox / "checkpoint")
    told = arguments(folder, runner.out) | {"dataset": lent, "holdout": lent}
    plain = {name: str(each) if isinstance(each, Path) else each for name, each in told.items()}
    keeping = {"seconds": 3600.0, "found": None if found is None else str(found)}
    runner.give({"kind": "bank", "threads": 1, "arguments": plain, "checkpoints": keeping})
    return runner


def arguments(folder: Path, out: Path) -> dict[str, Any]:
    return {
        "out": out,
        "architecture": WORLD.architecture,
        "preprocessing": {},
        "dataset": folder / "records.parquet",
        "holdout": folder / "records.parquet",
        "recipe": WORLD.recipe.model_dump(mode="json") | {"epochs": 120},
        "excluded": [],
        "split_key": "key",
        "models": 4,
        "seed": 1,
        "batch_size": 64,
        "device": "cpu",
    }


def interrupted(runner: Runner) -> tuple[Checkpoint, float]:
    """Interrupt the second model; return what was kept, and how far it was when asked."""
    at, kept = 0.0, None
    while True:
        event = runner.hear(600.0)
        if isinstance(event, Progress) and event.phase == "training" and at == 0.0:
            if event.progress > 0.3:
                at = event.progress
                runner.interrupt()
        elif isinstance(event, Checkpoint):
            kept = event
        elif isinstance(event, Interrupted):
            assert kept is not None
            return kept, at
        else:
            assert not isinstance(event, Done), "it was too quick"


def started(runner: Runner) -> float:
    """Wait for the end; return where the training was when it was first told."""
    began_at = None
    while True:
        event = runner.hear(600.0)
        if isinstance(event, Progress) and event.phase == "training" and began_at is None:
            began_at = event.progress
        if isinstance(event, Done):
            assert began_at is not None
            return began_at
