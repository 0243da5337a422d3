"""A stack with one model, and what chaos tests do to it."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable
from pathlib import Path

from app.store.failpoints import Place
from tests.chaos.checker import check, settle
from tests.chaos.nemesis import Nemesis
from tests.chaos.world import World
from tests.e2e.client import Client
from tests.e2e.stack import Distributed

EPOCHS = 40
KILLED = -9
REST_SECONDS = 180.0
SHORT = {
    "lease_seconds": 3,
    "heartbeat_seconds": 1,
    "sweep_seconds": 0.5,
    "dispatch_seconds": 0.5,
    "redispatch_seconds": 2,
    "checkpoint_seconds": 0.5,
}
"""Leases and intervals that make recoveries quick."""


class Rig:
    """A stack with one model, and what is needed to strike and to look."""

    def __init__(self, folder: Path, database_url: str, broker_url: str) -> None:
        self.database_url = database_url
        self.mended = 0
        """How often the API was started again."""
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
        """Have the API die there on a new request, which is sent again if need be; then heal.

        No worker runs meanwhile: its dispatcher would ring before the API's.
        """
        self.stack.stop_one("api")
        self._start_with(place, self.stack.start_api)
        self.stack.wait_until("/healthz")
        mended = self.mended
        self.world.ask(1, mend=self.mend_api)
        if self.mended == mended:  # it had answered by then
            assert self.stack.wait_for_death("api") == KILLED
            self.start_api()
        self.stack.start_worker()

    def check(self) -> None:
        """Wait until all is done and cleared away, and hold it against the promises."""
        self.nemesis.rest(REST_SECONDS)
        settle(self.database_url, self.stack.data_dir)
        assert self.stack.stop_one("worker") == 0
        check(self.database_url, self.stack.data_dir, self.world)

    def _start_with(self, place: Place, start: Callable[[], None]) -> None:
        self.stack.configure(failpoint=f"{place}=kill")
        start()
        self.stack.configure(failpoint="")

    def mend_api(self) -> None:
        """Start the API again if it died; a connection from before may be all that is dead."""
        try:
            self.stack.processes["api"].wait(3.0)
        except subprocess.TimeoutExpired:
            return
        assert self.stack.wait_for_death("api") == KILLED
        self.start_api()
        self.mended += 1

    def start_api(self) -> None:
        """Start the API as it should be, and wait until it is ready."""
        self.stack.configure(failpoint="")
        self.stack.start_api()
        self.stack.wait_until("/readyz")
