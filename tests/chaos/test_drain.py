"""SIGTERM in the middle of a long job: it goes back to the queue, and no attempt is burnt."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session

from app.store.tables import Job, Request
from tests.chaos.world import World
from tests.e2e.client import Client
from tests.e2e.stack import Distributed, Embedded

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]


def test_the_embedded_service_gives_its_job_back(tmp_path: Path) -> None:
    stack = Embedded(tmp_path)
    stack.start()
    url = f"sqlite+pysqlite:///{stack.data_dir / 'lethe.db'}"
    interrupt(stack, url, "serve")


@pytest.mark.postgres
@pytest.mark.redis
def test_the_celery_worker_gives_its_job_back(
    tmp_path: Path, postgres_url: str, redis_url: str
) -> None:
    stack = Distributed(tmp_path, postgres_url, redis_url)
    stack.start()
    interrupt(stack, postgres_url, "worker")


def interrupt(stack: Embedded | Distributed, url: str, name: str) -> None:
    """Stop the service while a job trains, and look at what it left."""
    client = Client(stack.url, stack.key)
    world = World(client, stack.folder, random.Random(0), epochs=10_000)
    try:
        world.build(num_models=1)
        world.ask(num_requests=1)
        request = client.get(f"/unlearn-requests/{next(iter(world.acknowledged))}")
        client.wait(f"/jobs/{request['job_id']}", "phase", "unlearning")
        assert stack.stop()[name] == 0
    finally:
        client.http.close()
        stack.stop()
    engine = create_engine(url)
    with Session(engine) as session:
        job = session.scalars(select(Job).where(Job.id == request["job_id"])).one()
        assert (job.status, job.attempts, job.epoch, job.lost_leases) == ("queued", 0, 1, 0)
        assert session.scalars(select(Request.status)).all() == ["queued"]
    engine.dispose()
    assert not list((stack.data_dir / "scratch").iterdir()), "scratch was left"
