"""The main job through uvicorn, a Celery worker, PostgreSQL and Redis; a part of it every day."""

from __future__ import annotations

from pathlib import Path

import pytest
from kombu import Connection, Exchange, Queue

from tests.e2e import story
from tests.e2e.client import Client
from tests.e2e.stack import Distributed

pytestmark = [pytest.mark.postgres, pytest.mark.redis]


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_main_job_distributed(
    whole: bool, tmp_path: Path, home: Path, postgres_url: str, redis_url: str
) -> None:
    stack = Distributed(tmp_path, postgres_url, redis_url)
    stack.start()
    say_nonsense(redis_url)
    try:
        with Client(stack.url, stack.key) as client:
            if whole:
                story.main_job(client, home)
            else:
                ids, model = story.register(client, home)
                story.forget_records(client, model, ids, parent="1")
        assert stack.stop()["worker"] == 0
    finally:
        stack.stop()


def say_nonsense(redis_url: str) -> None:
    """Send a message that ends a worker of Celery's own making."""
    options = {"global_keyprefix": "lethe:"}
    with Connection(redis_url, transport_options=options) as connection:
        connection.Producer().publish(
            "null",
            exchange="jobs-cpu",
            routing_key="jobs-cpu",
            content_type="application/json",
            content_encoding="utf-8",
            headers={"task": "jobs.run", "id": "forged"},
            declare=[Queue("jobs-cpu", Exchange("jobs-cpu"), routing_key="jobs-cpu")],
        )
