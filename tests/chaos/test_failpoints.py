"""The process dies at the named places of a job's way; afterwards nothing is lost or done twice.

A job that trains and publishes passes all of them. One stack lives through all the deaths, and
everything in its database is checked after each.
"""

from __future__ import annotations

import pytest

from app.store.failpoints import PLACES
from tests.chaos.rig import Rig
from tests.chaos.sizes import size

pytestmark = [pytest.mark.chaos, pytest.mark.redis, pytest.mark.timeout(36_000)]


def test_a_death_at_every_place(rig: Rig) -> None:
    for _ in range(size("T2 rounds")):
        for place in PLACES[:: size("T2 stride")]:
            print(f"death at {place}", flush=True)
            if place.startswith(("api.", "dispatch.")):
                rig.strike_api(place)
            else:
                rig.strike_worker(place)
            rig.check()
