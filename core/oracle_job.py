"""Train an oracle: the same network and recipe, on everything but what was forgotten."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

from . import networks, roles, weights
from .checkpoints import Keeper
from .data import Preprocessing
from .device import choose
from .errors import InvalidInput, OutOfTime
from .ladder import WEIGHTS_FILE
from .recipe import Recipe
from .report import Report, no_report
from .team import Team, team_size
from .training import fit


def oracle(
    *,
    out: Path,
    architecture: dict[str, Any],
    preprocessing: dict[str, Any],
    dataset: Path,
    recipe: dict[str, Any],
    excluded: list[int],
    seed: int,
    time_limit_seconds: float,
    device: str = "auto",
    processes: int = 1,
    report: Report = no_report,
    keeper: Keeper | None = None,
) -> dict[str, Any]:
    """Train a new network on the training records that are left.

    Args:
        out: folder for ``model.safetensors``.
        architecture: name and options of the network.
        preprocessing: how stored values become network input.
        dataset: canonical file of the training data.
        recipe: how version 1 was trained.
        excluded: training rows that were forgotten; no batch holds any of them.
        seed: of initialisation and order, and of nothing else: an exact unlearner with the same
            seed makes another model.
        time_limit_seconds: wall-clock limit.
        device: where to train.
        processes: how many may share the training; 0 is one for each accelerator.
        report: told about progress.
        keeper: keeps the state of the training, and has what an interrupted one left.

    Returns:
        file name and digest of the weights, and how many processes trained, if several were asked.

    Raises:
        InvalidInput: ``retain_set_too_small`` if no record is left; if data or recipe can't be
            used.
        OutOfTime: past the limit.
        Interrupted: if ``keeper`` was asked to end, and has the state.
        Diverged: if a loss or a weight is not finite.
    """
    start = time.monotonic()
    report("resolving", 0.0, None, None, {})
    network = networks.parse(architecture)
    known = roles.read(
        dataset=dataset,
        holdout=None,
        preprocessing=Preprocessing.model_validate(preprocessing),
        excluded=excluded,
        split_key="",
    )
    if known.train is None:
        raise InvalidInput("retain_set_too_small", "no training record is left")

    def check_time() -> None:
        if time.monotonic() > start + time_limit_seconds:
            raise OutOfTime("the time limit of the job is spent")

    def progress(fraction: float, metrics: dict[str, float]) -> None:
        spent = time.monotonic() - start
        left = spent / fraction * (1 - fraction) if fraction > 0 else None
        report("training", fraction, left, None, metrics)

    own_seed = oracle_seed(seed)
    where = choose(device)
    team = Team(team_size(processes, where), network)
    model = fit(
        networks.build(network, own_seed),
        known.train,
        Recipe.model_validate(recipe),
        seed=own_seed,
        device=where,
        progress=progress,
        check_time=check_time,
        keeper=keeper,
        team=team,
    )
    report("publishing", 0.0, None, None, {})
    digest = weights.save(model.cpu(), out / WEIGHTS_FILE)
    report("publishing", 1.0, 0.0, None, {})
    shared = team.summary()
    return {
        "weights": WEIGHTS_FILE,
        "digest": digest,
        "processes": None if shared is None else shared.model_dump(mode="json"),
    }


def oracle_seed(seed: int) -> int:
    """Derive the seed of an oracle, so that it is not the one of retraining."""
    return int.from_bytes(hashlib.sha256(f"oracle {seed}".encode()).digest()[:8], signed=True)
