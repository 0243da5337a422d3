"""``kill -9`` in the middle of jobs, again and again; afterwards nothing is lost or done twice.

A failing run prints its seed; ``LETHE_CHAOS_SEED`` replays its decisions (not its timing).
"""

from __future__ import annotations

import os
import random
import secrets
from pathlib import Path

import pytest

from tests.chaos.checker import check, settle
from tests.chaos.nemesis import Nemesis
from tests.chaos.rig import SHORT
from tests.chaos.sizes import size
from tests.chaos.world import World
from tests.e2e.client import Client
from tests.e2e.stack import Distributed, Embedded

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(36_000)]


@pytest.fixture
def rng() -> random.Random:
    seed = int(os.environ.get("LETHE_CHAOS_SEED", secrets.randbits(32)))
    print(f"seed {seed}")
    return random.Random(seed)


def test_the_embedded_service_killed_whole(tmp_path: Path, rng: random.Random) -> None:
    stack = Embedded(tmp_path, **SHORT)
    stack.start()
    url = f"sqlite+pysqlite:///{stack.data_dir / 'lethe.db'}"
    nemesis = Nemesis(url, rng)
    client = Client(stack.url, stack.key)
    world = World(client, tmp_path, rng, epochs=80)
    try:
        world.build(num_models=size("T1 models"))
        world.ask(num_requests=2)
        while nemesis.hits < size("T1 kills of the embedded service"):
            if not nemesis.strike(lambda: stack.kill("serve")):
                world.ask(num_requests=2)
                continue
            stack.start()
        nemesis.rest(180)
        assert stack.stop() == {"serve": 0}
        stack.start()
        settle(url, stack.data_dir)
    finally:
        nemesis.close()
        client.http.close()
        stack.stop()
    print(f"{nemesis.kills} kills, {nemesis.hits} in a running job")
    check(url, stack.data_dir, world)


@pytest.mark.postgres
@pytest.mark.redis
def test_the_celery_worker_killed(
    tmp_path: Path, rng: random.Random, postgres_url: str, redis_url: str
) -> None:
    stack = Distributed(tmp_path, postgres_url, redis_url, **SHORT)
    stack.start()
    nemesis = Nemesis(postgres_url, rng)
    client = Client(stack.url, stack.key)
    world = World(client, tmp_path, rng, epochs=80)
    try:
        world.build(num_models=size("T1 models"))
        world.ask(num_requests=2)
        while nemesis.hits < size("T1 kills of workers"):
            if not nemesis.strike(lambda: stack.kill("worker")):
                world.ask(num_requests=2)
                continue
            stack.start_worker()
        nemesis.rest(180)
        assert stack.stop()["worker"] == 0
        stack.start_worker()
        settle(postgres_url, stack.data_dir)
    finally:
        nemesis.close()
        client.http.close()
        stack.stop()
    print(f"{nemesis.kills} kills, {nemesis.hits} in a running job")
    check(postgres_url, stack.data_dir, world)
