"""``kill -9`` in the middle of jobs, again and again; afterwards nothing is lost or done twice.

The seed decides about the requests and the moments, not about their timing.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.checker import check, settle
from tests.chaos.nemesis import Nemesis
from tests.chaos.rig import SHORT
from tests.chaos.sizes import first, measured, percentile, strikes
from tests.chaos.world import World
from tests.e2e.client import Client
from tests.e2e.stack import Distributed, Embedded

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(36_000)]

NUM_MODELS = 3
NUM_KILLS = 5


def test_the_embedded_service_killed_whole(tmp_path: Path) -> None:
    stack = Embedded(tmp_path, **SHORT)
    url = f"sqlite+pysqlite:///{stack.data_dir / 'lethe.db'}"
    kill_again_and_again(stack, url, "serve", stack.start)


@pytest.mark.postgres
@pytest.mark.redis
def test_the_celery_worker_killed(tmp_path: Path, postgres_url: str, redis_url: str) -> None:
    stack = Distributed(tmp_path, postgres_url, redis_url, **SHORT)
    kill_again_and_again(stack, postgres_url, "worker", stack.start_worker)


def kill_again_and_again(
    stack: Embedded | Distributed, url: str, name: str, restart: Callable[[], None]
) -> None:
    """Kill until enough kills met a running job, with requests all the while; then look."""
    rng = random.Random(first())
    nemesis = Nemesis(url, rng)
    try:
        stack.start()
        with Client(stack.url, stack.key) as client:
            world = World(client, stack.folder, rng, epochs=80)
            world.build(NUM_MODELS)
            world.ask(num_requests=2)
            while nemesis.hits < strikes(NUM_KILLS):
                if nemesis.strike(lambda: stack.kill(name)):
                    restart()
                else:
                    world.ask(num_requests=2)
            nemesis.rest()
        settle(url, stack.data_dir)
    finally:
        nemesis.close()
        statuses = stack.stop()
    assert statuses[name] == 0, stack.log(name)
    counts = check(url, stack.data_dir, world)
    assert nemesis.recoveries, "no job that a kill met was claimed again"
    measured(
        kills=nemesis.kills,
        kills_in_a_running_job=nemesis.hits,
        recoveries=len(nemesis.recoveries),
        recovery_p95_seconds=round(percentile(nemesis.recoveries, 95), 1),
        longest_recovery_seconds=round(max(nemesis.recoveries), 1),
        **counts,
    )
