"""Train the reference models of a model, and keep what they say about its records."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from . import networks, roles
from .bank import train_bank
from .checkpoints import Keeper
from .data import Preprocessing
from .device import choose
from .errors import InvalidInput, OutOfTime
from .recipe import Recipe
from .report import Report, no_report
from .team import Team, team_size

BANK_FILE = "bank.safetensors"

TIME_LIMIT = 21_600.0
"""Seconds, for jobs that were queued when there was none to choose."""


def bank(
    *,
    out: Path,
    architecture: dict[str, Any],
    preprocessing: dict[str, Any],
    dataset: Path,
    holdout: Path | None,
    recipe: dict[str, Any],
    excluded: list[int],
    split_key: str,
    models: int,
    seed: int,
    batch_size: int,
    time_limit_seconds: float = TIME_LIMIT,
    device: str = "auto",
    processes: int = 1,
    report: Report = no_report,
    keeper: Keeper | None = None,
) -> dict[str, Any]:
    """Train reference models on halves of the training records that are left.

    Args:
        out: folder for ``bank.safetensors``.
        architecture: name and options of the network.
        preprocessing: how stored values become network input.
        dataset: canonical file of the training data.
        holdout: canonical file of never-seen data; where it is ``dataset``, its holdout split.
        recipe: how version 1 was trained.
        excluded: training rows that were forgotten; no model sees them, and none are kept.
        split_key: halves the holdout into tuning and judging.
        models: how many; even, because halves come in pairs.
        seed: of halves, initialisation and order.
        batch_size: records per forward pass.
        time_limit_seconds: wall-clock limit of all models together.
        device: where to train.
        processes: how many may share a training; 0 is one for each accelerator.
        report: told about progress.
        keeper: keeps what the models that are done say and the state of the one at work, and has
            what an interrupted attempt at the same job left.

    Returns:
        file name of the bank, how many models it holds, and how many processes trained them, if
        several were asked.

    Raises:
        InvalidInput: ``retain_set_too_small`` or ``holdout_missing`` if there are no such records;
            if data or recipe can't be used.
        MissingEvidence: if too few training records are left for halves.
        OutOfTime: past the limit.
        Interrupted: if ``keeper`` was asked to end, and has the state.
        Diverged: if a loss or a weight is not finite.
    """
    deadline = time.monotonic() + time_limit_seconds
    report("resolving", 0.0, None, None, {})
    network = networks.parse(architecture)
    known = roles.read(
        dataset=dataset,
        holdout=holdout,
        preprocessing=Preprocessing.model_validate(preprocessing),
        excluded=excluded,
        split_key=split_key,
    )
    if known.train is None:
        raise InvalidInput("retain_set_too_small", "no training record is left")
    if known.judging is None:
        raise InvalidInput("holdout_missing", "the holdout has no record to judge on")
    start = time.monotonic()
    where = choose(device)
    team = Team(team_size(processes, where), network)

    def check_time() -> None:
        if time.monotonic() > deadline:
            raise OutOfTime("the time limit of the job is spent")

    def progress(fraction: float, metrics: dict[str, float]) -> None:
        spent = time.monotonic() - start
        left = spent / fraction * (1 - fraction) if fraction > 0 else None
        report("training", fraction, left, None, metrics)

    made = train_bank(
        out / BANK_FILE,
        fresh=lambda fresh_seed: networks.build(network, fresh_seed),
        train=known.train,
        judging=known.judging,
        recipe=Recipe.model_validate(recipe),
        parent="",  # margins of reference models do not depend on what is audited
        seed=seed,
        batch_size=batch_size,
        device=where,
        num_models=models,
        excluded=excluded,
        progress=progress,
        team=team,
        check_time=check_time,
        keeper=keeper,
    )
    report("publishing", 1.0, 0.0, None, {})
    shared = team.summary()
    return {
        "bank": BANK_FILE,
        "models": len(made),
        "processes": None if shared is None else shared.model_dump(mode="json"),
    }
