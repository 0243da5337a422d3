"""The main job through uvicorn, a Celery worker, PostgreSQL and Redis."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e import story
from tests.e2e.client import Client
from tests.e2e.stack import Distributed

pytestmark = [pytest.mark.postgres, pytest.mark.redis]


def test_the_main_job_distributed(tmp_path: Path, postgres_url: str, redis_url: str) -> None:
    stack = Distributed(tmp_path, postgres_url, redis_url)
    stack.start()
    try:
        with Client(stack.url, stack.key) as client:
            story.main_job(client, tmp_path)
        assert stack.stop()["worker"] == 0
    finally:
        stack.stop()
