"""Messages that were forged, doubled, malformed or pickled: none has an effect (T8)."""

from __future__ import annotations

import json
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from app import bell
from tests.chaos.rig import Rig
from tests.chaos.sizes import measured, strikes
from tests.worker.test_consumer import SENSELESS, headers

pytestmark = [pytest.mark.chaos, pytest.mark.redis, pytest.mark.timeout(36_000)]


class Canary:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_no_message_has_an_effect(quick_rig: Rig, redis_url: str, tmp_path: Path) -> None:
    rig, counts, num_messages = quick_rig, {"requests": 0}, 0
    forger = Celery("forger", broker=redis_url, set_as_current=False)
    forger.conf.broker_transport_options = {"global_keyprefix": "lethe:"}
    canary = tmp_path / "canary"
    rng = random.Random(0)
    for _ in range(strikes(few=1)):
        rig.stack.start_worker()
        rig.world.ask(2)
        known = [job["id"] for job in rig.client.get("/jobs?limit=20")["data"]]
        bad = [*messages(known, canary)]
        rng.shuffle(bad)
        with forger.connection_for_write() as connection:
            producer = connection.Producer()
            for body, content_type, headers in bad:
                for need in ("cpu", "gpu"):
                    producer.publish(
                        body,
                        routing_key=f"jobs-{need}",
                        exchange=f"jobs-{need}",
                        content_type=content_type,
                        content_encoding="utf-8" if isinstance(body, str) else "binary",
                        headers=headers,
                    )
        num_messages += 2 * len(bad)
        assert rig.stack.processes["worker"].poll() is None, rig.stack.log("worker")
        counts = rig.check()
        assert not canary.exists(), "a pickled message was opened"
    measured(messages=num_messages, **counts)


def messages(known: list[str], canary: Path) -> Any:
    """Bodies with their content type and headers."""
    task = {"lang": "py", "task": bell.RUN_JOB, "id": "forged", "root_id": "forged"}
    for job_id in known:
        for _ in range(10):
            yield arguments([job_id]), "application/json", task
    for wrong in ([], ["job_nobody"], [None], [{"a": 1}], ["x" * 10_000], ["'; drop table jobs"]):
        yield arguments(wrong), "application/json", task
    yield arguments(["job_x"], {"epoch": 3}), "application/json", task
    yield arguments(["job_x"]), "application/json", task | {"task": "os.system"}
    for body, changed in SENSELESS.values():
        content_type = "application/json" if isinstance(body, str) else "application/data"
        yield body, content_type, headers(task | changed)
    yield pickle.dumps(([Canary(canary)], {}, {})), "application/x-python-serialize", task


def arguments(args: list[Any], kwargs: dict[str, Any] | None = None) -> str:
    return json.dumps([args, kwargs or {}, {}])
