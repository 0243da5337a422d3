"""One job whose retraining two processes share, through the whole service."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.e2e import story
from tests.e2e.client import Client
from tests.e2e.stack import Embedded


@pytest.mark.slow
def test_two_processes_retrain(tmp_path: Path, home: Path) -> None:
    """Fewer than 200 records: the exact rung alone, which is a training from scratch."""
    stack = Embedded(tmp_path, train_processes=2)
    stack.start()
    try:
        with Client(stack.url, stack.key) as client:
            ids, model = story.register(client, home)
            forget = {"type": "record_ids", "record_ids": ids[:20]}
            request = client.forget("records", model, forget)
            story.published(client, model, request, parent="1")
            job = client.get(f"/jobs/{request['job_id']}")
            told = job["result"]["rungs_tried"][-1]["processes"]
            assert (told["asked"], told["used"], told["backend"]) == (2, 2, "gloo"), told
            assert "2 processes" in told["determinism"]
            assert client.get(f"/models/{model}/versions/2")["processes"] == told
            if sys.platform == "linux":
                assert job["sandbox"]["level"] in ("L1", "L2"), "the walls stay"
    finally:
        assert stack.stop() == {"serve": 0}
