"""Models retrained without a forget set: what every unlearner of the studies is compared with.

One file per regime, forget set and seed under ``benchmarks/results/oracles`` (``oracles-full`` for
``--scale full``): accuracies, the membership attack, and per record the margin and whether it is
right, so that later studies need no retraining. Files that are there are skipped, so a run may be
stopped at any time.

    python -m benchmarks.oracles [--data FOLDER] [--regime NAME] [--seeds 3] [--most N]
        [--scale full]
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks import cifar, scales, study
from benchmarks.hardware import describe, need, parser
from benchmarks.scales import SCALE
from core import measures
from core.data import Records
from core.device import choose
from core.scores import gather, match_classes
from core.training import fit

RETAIN_SAMPLE = 2000
REGIMES = ("memorised", "regularised", "shipped")


def main() -> None:
    """Train what is missing."""
    options = parser(__doc__)
    options.add_argument("--regime", choices=REGIMES, action="append")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--most", type=int, default=10**6, help="train at most this many")
    args = scales.parse(options)
    need(args.data, cifar.TRAIN, cifar.TEST)
    left = args.most
    for regime in args.regime or SCALE.get().recipes:
        for seed in range(101, 101 + args.seeds):
            for name in study.forget_sets(regime):
                if left and not path(regime, name, seed).exists():
                    train(args.data, regime, name, seed)
                    left -= 1
    missing = [
        f"{regime} {name} {seed}"
        for regime in SCALE.get().recipes
        for name in study.forget_sets(regime)
        for seed in range(101, 101 + args.seeds)
        if not path(regime, name, seed).exists()
    ]
    print(f"missing: {', '.join(missing) or 'nothing'}")


def path(regime: str, name: str, seed: int) -> Path:
    """File of one oracle."""
    return scales.results("oracles") / f"{regime}-{name}-s{seed}.npz"


def train(data: Path, regime: str, name: str, seed: int) -> None:
    """Train one oracle and keep what it says about every record that is judged."""
    world = study.world(data, regime)
    chosen = study.mask(world.train, study.forget_sets(regime)[name])
    start, cpu = time.monotonic(), time.process_time()
    model = fit(
        world.fresh(seed),
        world.train.take(~chosen),
        world.recipe,
        seed=seed,
        device=choose(),
    )
    seconds, cpu = time.monotonic() - start, time.process_time() - cpu
    arrays = describe_model(model, world, chosen)
    target = path(regime, name, seed)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_suffix(".part.npz")
    arrays |= {"seconds": np.asarray(seconds), "cpu_seconds": np.asarray(cpu)}
    arrays |= {"hardware": np.asarray(describe())}
    np.savez_compressed(scratch, allow_pickle=False, **arrays)
    scratch.replace(target)
    figures = summary(arrays)
    print(f"{target.stem}: {seconds:.0f} s, {figures}", flush=True)


def describe_model(
    model: nn.Module, world: study.World, chosen: torch.Tensor
) -> dict[str, np.ndarray[Any, Any]]:
    """Margin (float16), correctness and label of forget, retained and holdout records."""
    retain = world.train.take(~chosen)
    parts = {
        "forget": world.train.take(chosen),
        "retain": retain.take(torch.arange(min(RETAIN_SAMPLE, len(retain)))),
        "judging": world.judging,
        "tuning": world.tuning,
    }
    return {f"{role}_{key}": value for role, r in parts.items() for key, value in _of(model, r)}


def summary(arrays: Any) -> dict[str, float]:
    """Forget, retain and holdout accuracy, and the AUC of the membership attack on margins."""
    labels = torch.from_numpy(arrays["forget_label"].astype(np.int64))
    others = torch.from_numpy(arrays["judging_label"].astype(np.int64))
    match = match_classes(labels, others)
    forget = torch.from_numpy(arrays["forget_margin"].astype(np.float64))[match.forget]
    holdout = torch.from_numpy(arrays["judging_margin"].astype(np.float64))[match.others]
    right = torch.from_numpy(arrays["judging_right"])
    is_class = bool(labels.eq(labels[0]).all())
    kept = others.ne(labels[0]) if is_class else torch.ones(len(others), dtype=torch.bool)
    return {
        "forget_accuracy": float(arrays["forget_right"].mean()),
        "retain_accuracy": float(arrays["retain_right"].mean()),
        "holdout_accuracy": float(right[kept].double().mean()),
        "auc": measures.membership_auc(forget, holdout, match.weights),
    }


def _of(model: nn.Module, records: Records) -> list[tuple[str, np.ndarray[Any, Any]]]:
    logits = gather(model, records, batch_size=500, device=choose())
    margin = measures.margin(logits, records.labels).clamp(-6e4, 6e4)
    return [
        ("margin", margin.numpy().astype(np.float16)),
        ("right", measures.correct(logits, records.labels).numpy()),
        ("label", records.labels.numpy().astype(np.uint8)),
    ]


if __name__ == "__main__":
    main()
