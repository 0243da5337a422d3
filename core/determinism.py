"""Seeding, and what is not promised.

On one machine the same seed, thread count, number of processes that share a training, and CPU give
the same bits. Across thread or process counts, CPUs, GPUs or releases of torch they do not.
"""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed every global random generator in use; ``seed`` is any int64."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # libraries draw from the global state
    torch.manual_seed(seed)


def generator(seed: int) -> torch.Generator:
    """Return a CPU generator of its own for one purpose; ``seed`` is any int64."""
    return torch.Generator().manual_seed(seed)


def fresh_seed(seed: int, origin: str = "") -> int:
    """Derive the seed of a new network, so that it is not the one of another step.

    Args:
        seed: any int64.
        origin: of what the new network is to replace; another one, another start.
    """
    words = f"retrain {seed} {origin}".rstrip()
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], signed=True)
