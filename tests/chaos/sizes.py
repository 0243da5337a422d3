"""How often a chaos test strikes: a few times, or portions of what ``make chaos-full`` asks."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Collection

STRIKES = "LETHE_CHAOS_STRIKES"
FIRST = "LETHE_CHAOS_FIRST"
MEASURED = re.compile(r"^measured (\{.*\})$", re.MULTILINE)


def strikes(few: int) -> int:
    """How often to strike."""
    return int(os.environ.get(STRIKES, few))


def is_full() -> bool:
    """Whether this is a portion of the full number."""
    return STRIKES in os.environ


def first() -> int:
    """How many strikes went before, in other portions: the seed, and the place to begin at."""
    return int(os.environ.get(FIRST, 0))


def measured(**counts: float) -> None:
    """Tell what came out; ``make chaos-full`` adds it up."""
    # A line of its own, whatever pytest has written of the tests before.
    print(f"\nmeasured {json.dumps(counts)}", flush=True)


def percentile(values: Collection[float], percent: float) -> float:
    """The smallest of the values that so many percent of them do not exceed."""
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1]
