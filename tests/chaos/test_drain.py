"""SIGTERM in the middle of a long job: it goes back to the queue, and no attempt is burnt.

Interrupted again and again, it publishes what a training in one go would have.
"""

from __future__ import annotations

import random
import time
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session

from app.store.tables import Job, Request
from tests.chaos.checker import check, settle
from tests.chaos.nemesis import Nemesis
from tests.chaos.sizes import measured, strikes
from tests.chaos.world import PATIENCE_SECONDS, World
from tests.e2e.client import Client, Json
from tests.e2e.stack import Distributed, Embedded

LONGEST_DRAIN = 60.0
EPOCHS_BETWEEN = 1000
"""Seconds of training for each drain: more than one takes."""
pytestmark = [pytest.mark.chaos, pytest.mark.timeout(36_000)]


def test_the_embedded_service_gives_its_job_back(tmp_path: Path) -> None:
    stack = Embedded(tmp_path)
    interrupt(stack, f"sqlite+pysqlite:///{stack.data_dir / 'lethe.db'}", "serve")


@pytest.mark.postgres
@pytest.mark.redis
def test_the_celery_worker_gives_its_job_back(
    tmp_path: Path, postgres_url: str, redis_url: str
) -> None:
    interrupt(Distributed(tmp_path, postgres_url, redis_url), postgres_url, "worker")


def interrupt(stack: Embedded | Distributed, url: str, name: str) -> None:
    """Stop the service while a job trains, again and again; look at what is left, and go on."""
    drains, rng = strikes(few=1), random.Random(0)
    engine, nemesis = create_engine(url), Nemesis(url, rng)
    reached = longest = 0.0
    try:
        stack.start()
        with closing(nemesis), Client(stack.url, stack.key) as client:
            world = World(client, stack.folder, rng, epochs=EPOCHS_BETWEEN * (drains + 1))
            world.build(num_models=1)
            world.ask(num_requests=1)
            request = client.get(f"/unlearn-requests/{next(iter(world.acknowledged))}")
            for number in range(1, drains + 1):
                found = trains(client, request["job_id"])
                assert found["progress"] >= reached, "the training began again"
                started = time.monotonic()
                assert stack.stop()[name] == 0, stack.log(name)
                longest = max(longest, time.monotonic() - started)
                assert longest < LONGEST_DRAIN
                with Session(engine) as session:
                    job = session.scalars(select(Job).where(Job.id == request["job_id"])).one()
                    left = (job.status, job.attempts, job.epoch, job.lost_leases, job.runner_deaths)
                    assert left == ("queued", 0, number, 0, 0)
                    assert job.checkpoint_blob is not None, "the training's state was not kept"
                    assert session.scalars(select(Request.status)).all() == ["queued"]
                assert not list((stack.data_dir / "scratch").iterdir()), "scratch was left"
                reached = found["progress"]
                stack.start()
            nemesis.rest()
        settle(url, stack.data_dir)
        assert stack.stop()[name] == 0, stack.log(name)
    finally:
        stack.stop()
        engine.dispose()
    counts = check(url, stack.data_dir, world)
    measured(drains=drains, longest_drain_seconds=round(longest, 1), **counts)


def trains(client: Client, job_id: str) -> Json:
    """Wait until a job has trained for a while."""
    path = f"/jobs/{job_id}"
    client.wait(path, "phase", "unlearning", seconds=PATIENCE_SECONDS)
    while client.get(path)["progress"] == 0:
        time.sleep(0.05)
    time.sleep(1.0)
    return client.get(path)
