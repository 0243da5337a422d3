"""How often each chaos test strikes: a few times, or as often as the published figures say."""

from __future__ import annotations

import os

FULL = "LETHE_CHAOS_FULL"

SIZES = {
    "T1 kills of workers": (20, 200),
    "T1 kills of the embedded service": (10, 200),
    "T1 models": (3, 6),
    "T2 rounds": (1, 10),
    "T2 stride": (6, 1),
    "T3 kills": (5, 100),
    "T4 broker": (2, 20),
    "T5 database": (2, 20),
    "T6 zombies": (2, 50),
    "T7 drains": (1, 50),
    "T8 rounds": (1, 10),
    "T12 schedules": (20, 5_000),
}


def size(name: str) -> int:
    """How often, in the form that ``LETHE_CHAOS_FULL`` asks for."""
    few, full = SIZES[name]
    return full if os.environ.get(FULL) == "1" else few
