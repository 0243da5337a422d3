"""The main job through uvicorn, a Celery worker, PostgreSQL and Redis; a part of it every day."""

from __future__ import annotations

from pathlib import Path

import pytest

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
