"""Messages that make no sense are thrown away, and their worker goes on."""

from __future__ import annotations

import json
import queue
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker
from celery.worker import state

from tests.worker.test_lease import eventually

NAME = "bell"
TASK = {"lang": "py", "task": NAME, "id": "forged", "root_id": "forged"}
GOOD = json.dumps([["job"], {}, {}])
SENSELESS: dict[str, tuple[str | bytes, dict[str, Any]]] = {
    "null": ("null", {}),
    "a number": ("5", {}),
    "a text": ('"job"', {}),
    "an empty list": ("[]", {}),
    "too few": ('[["job"]]', {}),
    "arguments that are none": ("[5, {}, {}]", {}),
    "names that are none": ('[["job"], 5, {}]', {}),
    "options that are none": ('[["job"], {}, 5]', {}),
    "an object": ("{}", {}),
    "an object with arguments": ('{"args": 5}', {}),
    "no JSON": ("{not json", {}),
    "no text": (b"\x00\xff", {}),
    "no id": (GOOD, {"id": ...}),
    "an id that is none": (GOOD, {"id": [1]}),
    "a limit that is none": (GOOD, {"timelimit": 5}),
    "a time that is none": (GOOD, {"eta": "soon"}),
    "an end that is none": (GOOD, {"expires": "late"}),
    "retries that are none": (GOOD, {"retries": "often", "timelimit": [1, 2, 3]}),
    "another task": (GOOD, {"task": "os.system"}),
    "a task that is none": (GOOD, {"task": [1]}),
    "no task": (GOOD, {"task": ...}),
}
"""Name -> body, and headers instead of the right ones; ``...`` for one that is missing."""


def headers(changed: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in (TASK | changed).items() if value is not ...}


@pytest.fixture(scope="module")
def bells() -> Iterator[tuple[Celery, queue.Queue[str]]]:
    """A worker and what it has heard."""
    app = Celery(uuid.uuid4().hex, broker="memory://", set_as_current=False)
    app.conf.update(accept_content=["json"], worker_hijack_root_logger=False)
    app.conf.worker_consumer = "worker.consumer:Consumer"
    app.conf.broker_transport_options = {"polling_interval": 0.02}
    heard: queue.Queue[str] = queue.Queue()
    app.task(name=NAME)(heard.put)
    with start_worker(app, pool="solo", perform_ping_check=False, shutdown_timeout=30):
        yield app, heard


@pytest.mark.parametrize("name", SENSELESS)
def test_the_worker_goes_on(name: str, bells: tuple[Celery, queue.Queue[str]]) -> None:
    app, heard = bells
    body, changed = SENSELESS[name]
    with app.connection_for_write() as connection:
        connection.Producer().publish(
            body,
            routing_key="celery",
            content_type="application/json" if isinstance(body, str) else "application/data",
            content_encoding="utf-8" if isinstance(body, str) else "binary",
            headers=headers(changed),
        )
    app.send_task(NAME, [name])
    while (found := heard.get(timeout=10)) != name:
        assert found == "job", "nothing is heard that was not said"
    # Else a worker on Redis would hear nothing more: it counts them before it listens.
    assert eventually(lambda: not state.reserved_requests)
