"""A stack with one model, and what chaos tests do to it."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sqlalchemy import create_engine
from sqlalchemy.exc import OperationalError

from app.store.failpoints import Place
from tests.chaos.checker import check, settle
from tests.chaos.nemesis import Nemesis
from tests.chaos.sizes import first
from tests.chaos.world import World
from tests.e2e.client import Client
from tests.e2e.stack import Distributed

EPOCHS, QUICK_EPOCHS = 40, 4
KILLED = -9
SHORT = {
    "lease_seconds": 6,
    "heartbeat_seconds": 1,
    "sweep_seconds": 0.5,
    "dispatch_seconds": 0.5,
    "redispatch_seconds": 2,
    "checkpoint_seconds": 0.5,
}
"""Intervals that make recoveries quick; the lease outlasts the pauses of a busy machine."""


class Rig:
    """A stack with one model, and what is needed to strike and to look.

    Args:
        stack: has been started.
        world: of that stack, with its model.
        nemesis: of its database.
        database_url: where that is.
    """

    def __init__(
        self, stack: Distributed, world: World, nemesis: Nemesis, database_url: str
    ) -> None:
        self.stack, self.world, self.nemesis = stack, world, nemesis
        self.client = world.client
        self._database_url = database_url
        self.mended = 0
        """How often the API was started again."""

    def strike_worker(self, place: Place) -> None:
        """Have the worker die there while it does a new request; then heal and wait."""
        self._start_with(place, self.stack.start_worker)
        self.world.ask(1)
        assert self.stack.wait_for_death("worker") == KILLED
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

    def check(self) -> dict[str, int]:
        """Wait until all is done and cleared away, hold it against the promises, and count."""
        try:
            self.nemesis.rest()
            settle(self._database_url, self.stack.data_dir)
            self.stop_worker()
            return check(self._database_url, self.stack.data_dir, self.world)
        except AssertionError:
            print(self.stack.log("worker"), flush=True)  # it goes with its folder
            raise

    def can_write(self) -> bool:
        """Whether nobody holds the database for himself alone, as only SQLite lets one do."""
        engine = create_engine(self._database_url)
        if engine.dialect.name != "sqlite":
            return True
        with engine.connect() as connection:
            connection.exec_driver_sql("pragma busy_timeout = 1000")
            try:
                connection.exec_driver_sql("begin immediate")
            except OperationalError:
                return False
            connection.exec_driver_sql("rollback")
        return True

    def stop_worker(self, name: str = "worker") -> None:
        """End a worker as its operator does; before it is ready, no handler hears the signal."""
        self.stack.wait_for_line(name, "worker_ready")
        assert self.stack.stop_one(name) == 0, self.stack.log(name)

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
        self.stack.start_api()
        self.stack.wait_until("/readyz")

    def _start_with(self, place: Place, start: Callable[[], None]) -> None:
        self.stack.configure(failpoint=f"{place}=kill")
        start()
        self.stack.configure(failpoint="")


@contextmanager
def running(
    folder: Path, database_url: str, broker_url: str, *, quick: bool = False
) -> Iterator[Rig]:
    """A rig whose worker was stopped once the model was ready.

    Args:
        folder: for data, logs and uploads.
        database_url: of an empty database.
        broker_url: of a Redis database.
        quick: have trainings take a fifth of a second, with checkpoints all the same.
    """
    with ExitStack() as closing:
        stack = Distributed(folder, database_url, broker_url, **SHORT, spare_runner=False)
        closing.callback(stack.stop)
        stack.start()
        client = closing.enter_context(Client(stack.url, stack.key))
        epochs = QUICK_EPOCHS if quick else EPOCHS
        world = World(client, folder, random.Random(first()), epochs=epochs)
        world.build(num_models=1)
        nemesis = Nemesis(database_url, random.Random(first()))
        closing.callback(nemesis.close)
        rig = Rig(stack, world, nemesis, database_url)
        rig.stop_worker()
        if quick:
            stack.configure(checkpoint_seconds=0.02)
        yield rig
