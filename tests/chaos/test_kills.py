"""``kill -9`` in the middle of jobs, again and again; afterwards nothing is lost or done twice.

A worker with all below it, its runner alone, and its supervisor alone take turns. The seed decides
about the requests and the moments, not about their timing.
"""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest

from tests.chaos.checker import check, settle
from tests.chaos.nemesis import Nemesis, kill_tree
from tests.chaos.rig import KILLED, SHORT
from tests.chaos.sizes import first, measured, percentile, strikes
from tests.chaos.world import World
from tests.e2e.client import Client
from tests.e2e.stack import Distributed, Embedded

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(36_000)]

NUM_MODELS = 3
NUM_KILLS = 3
VICTIMS = ("runner", "worker", "supervisor")
INTERVALS = {**SHORT, "retry_backoff_seconds": "[1]"}
PROMISED_SECONDS = SHORT["lease_seconds"] + SHORT["sweep_seconds"] + 2.0
"""From a worker's being ready to the next claim of a job that a kill met."""


def test_the_embedded_service_killed(tmp_path: Path) -> None:
    stack = Embedded(tmp_path, **INTERVALS)
    url = f"sqlite+pysqlite:///{stack.data_dir / 'lethe.db'}"
    kill_again_and_again(stack, url, "serve", stack.start)


@pytest.mark.postgres
@pytest.mark.redis
def test_the_celery_worker_killed(tmp_path: Path, postgres_url: str, redis_url: str) -> None:
    def restart() -> None:
        stack.start_worker()
        stack.wait_for_line("worker", "worker_ready")

    stack = Distributed(tmp_path, postgres_url, redis_url, **INTERVALS)
    kill_again_and_again(stack, postgres_url, "worker", restart)


def kill_again_and_again(
    stack: Embedded | Distributed, url: str, name: str, restart: Callable[[], None]
) -> None:
    """Kill until enough kills met a running job, with requests all the while; then look."""
    rng = random.Random(first())
    nemesis = Nemesis(url, rng)
    met = Counter[str]()
    try:
        stack.start()
        with Client(stack.url, stack.key) as client:
            world = World(client, stack.folder, rng, epochs=80)
            world.build(NUM_MODELS)
            world.ask(num_requests=2)
            while nemesis.hits < strikes(NUM_KILLS):
                before, whom = nemesis.hits, victim(first() + nemesis.hits)
                if not strike(nemesis, stack, name, whom, restart):
                    world.ask(num_requests=2)
                met[whom] += nemesis.hits - before
            nemesis.rest()
        settle(url, stack.data_dir)
    finally:
        nemesis.close()
        statuses = stack.stop()
    assert statuses[name] == 0, stack.log(name)
    counts = check(url, stack.data_dir, world)
    assert nemesis.recoveries, "no job that a kill met was claimed again"
    seconds = [each.seconds for each in nemesis.recoveries]
    waited = [each.waited for each in nemesis.recoveries]
    measured(
        kills=nemesis.kills,
        kills_in_a_running_job=nemesis.hits,
        **{f"of_these_{each}s": met[each] for each in VICTIMS},
        recoveries=len(seconds),
        recovery_p95_seconds=round(percentile(seconds, 95), 1),
        longest_recovery_seconds=round(max(seconds), 1),
        longest_wait_for_recovery_seconds=round(max(waited), 1),
        late_recoveries=sum(each > PROMISED_SECONDS for each in waited),
        **counts,
    )


def victim(number: int) -> str:
    """Whom to kill; shifted every third time, because the moments take turns, too."""
    return VICTIMS[(number + number // len(VICTIMS)) % len(VICTIMS)]


def strike(
    nemesis: Nemesis,
    stack: Embedded | Distributed,
    name: str,
    whom: str,
    restart: Callable[[], None],
) -> bool:
    """Kill one of them at the next moment; return False if no job is left."""
    if whom == "runner":
        kill = partial(kill_runner, stack.processes[name].pid)
        return nemesis.strike(kill, lambda: None, outlived=True)
    if whom == "supervisor":
        return nemesis.strike(lambda: stack.kill(name), restart)
    return nemesis.strike(lambda: kill_whole(stack, name), restart)


def kill_whole(stack: Embedded | Distributed, name: str) -> None:
    """SIGKILL to a worker and all its runners."""
    kill_tree(stack.processes[name].pid)
    assert stack.wait_for_death(name) == KILLED


def kill_runner(supervisor: int) -> None:
    """SIGKILL to the runner at work: the oldest, because a spare is started after it."""
    children = psutil.Process(supervisor).children()
    for each in sorted(children, key=psutil.Process.create_time):
        with contextlib.suppress(psutil.NoSuchProcess):  # what has just ended says nothing
            if "worker.runner" in each.cmdline():
                each.kill()
                return
