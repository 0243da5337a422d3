"""The process dies at every named place of a job's way; afterwards nothing is lost or done twice.

A job that trains and publishes passes all of them. One stack lives through all the deaths, and
everything in its database is checked after each.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.store.failpoints import PLACES, Place
from tests.chaos.checker import check, settle
from tests.chaos.nemesis import Nemesis
from tests.chaos.sizes import size
from tests.chaos.test_kills import SHORT
from tests.chaos.world import World
from tests.e2e.client import Client
from tests.e2e.stack import Distributed

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.redis,
    pytest.mark.timeout(7200),
]

EPOCHS = 40
KILLED = -9
REST_SECONDS = 120.0


class Rig:
    """A stack with one model, and what is needed to strike and to look."""

    def __init__(self, folder: Path, database_url: str, broker_url: str) -> None:
        self.database_url = database_url
        self.stack = Distributed(folder, database_url, broker_url, **SHORT, spare_runner=False)
        self.stack.start()
        self.client = Client(self.stack.url, self.stack.key)
        self.world = World(self.client, folder, random.Random(0), epochs=EPOCHS)
        self.world.build(num_models=1)
        self.nemesis = Nemesis(database_url, random.Random(0))
        assert self.stack.stop_one("worker") == 0

    def close(self) -> None:
        self.nemesis.close()
        self.client.http.close()
        self.stack.stop()

    def strike_worker(self, place: Place) -> None:
        """Have the worker die there while it does a new request; then heal and wait."""
        self._start_with(place, self.stack.start_worker)
        self.world.ask(1)
        assert self.stack.wait_for_death("worker") == KILLED
        self.stack.configure(failpoint="")
        self.stack.start_worker()

    def strike_api(self, place: Place) -> None:
        """Have the API die there on a new request, which is then sent again; heal and wait."""
        self.stack.start_worker()
        self.stack.stop_one("api")
        self._start_with(place, self.stack.start_api)
        self.stack.wait_until("/healthz")
        self.world.ask(1, mend=self._mend_api)
        if "api" in self.stack.processes and place.startswith("dispatch"):
            assert self.stack.wait_for_death("api") == KILLED
            self._start_api()

    def check(self) -> None:
        """Wait until all is done and cleared away, and hold it against the promises."""
        self.nemesis.rest(REST_SECONDS)
        settle(self.database_url, self.stack.data_dir)
        assert self.stack.stop_one("worker") == 0
        check(self.database_url, self.stack.data_dir, self.world)

    def _start_with(self, place: Place, start) -> None:
        self.stack.configure(failpoint=f"{place}=kill")
        start()
        self.stack.configure(failpoint="")

    def _mend_api(self) -> None:
        assert self.stack.wait_for_death("api") == KILLED
        self._start_api()

    def _start_api(self) -> None:
        self.stack.configure(failpoint="")
        self.stack.start_api()
        self.stack.wait_until("/readyz")


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def rig(request: pytest.FixtureRequest, tmp_path: Path, redis_url: str) -> Iterator[Rig]:
    if request.param == "sqlite":
        url = f"sqlite+pysqlite:///{tmp_path / 'lethe.db'}"
    else:
        url = request.getfixturevalue("postgres_url")
    made = Rig(tmp_path, url, redis_url)
    yield made
    made.close()


def test_a_death_at_every_place(rig: Rig) -> None:
    for _ in range(size("T2 rounds")):
        for place in PLACES:
            print(f"death at {place}", flush=True)
            if place.startswith(("api.", "dispatch.")):
                rig.strike_api(place)
            else:
                rig.strike_worker(place)
            rig.check()
