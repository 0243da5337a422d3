"""The process dies at the named places of a job's way; afterwards nothing is lost or done twice.

A job that trains and publishes passes all of them. One stack lives through the deaths of a run, and
everything in its database is checked after each.
"""

from __future__ import annotations

import pytest

from app.store.failpoints import PLACES
from tests.chaos.rig import Rig
from tests.chaos.sizes import first, measured, strikes

STRIDE = 6
ORDER = [place for start in range(STRIDE) for place in PLACES[start::STRIDE]]
"""All places; the first few already lie all along the way."""

pytestmark = [pytest.mark.chaos, pytest.mark.redis, pytest.mark.timeout(36_000)]


def test_a_death_at_every_place(quick_rig: Rig) -> None:
    rig, counts, deaths = quick_rig, {"requests": 0}, range(first(), first() + strikes(few=3))
    for number in deaths:
        place = ORDER[number % len(ORDER)]
        print(f"death at {place}", flush=True)
        if place.startswith(("api.", "dispatch.")):
            rig.strike_api(place)
        else:
            rig.strike_worker(place)
        counts = rig.check()
    measured(deaths=len(deaths), **counts)
