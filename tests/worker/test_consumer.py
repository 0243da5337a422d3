"""Messages that make no sense are thrown away before Celery sees them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from kombu import Connection, Exchange, Queue
from kombu.message import Message

from app import bell
from app.settings import Settings, get_settings
from worker.consumer import is_sound

TASK = {"lang": "py", "task": bell.RUN_JOB, "id": "forged", "root_id": "forged"}
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
    "callbacks": ('[["job"], {}, {"callbacks": [{"task": "os.system"}]}]', {}),
    "another task": (GOOD, {"task": "os.system"}),
    "a task that is none": (GOOD, {"task": [1]}),
    "no task": (GOOD, {"task": ...}),
}
"""Name -> body, and headers instead of the right ones; ``...`` for one that is missing."""


def headers(changed: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in (TASK | changed).items() if value is not ...}


@pytest.fixture
def line() -> Iterator[tuple[Connection, Queue]]:
    """A broker and a queue of its own there."""
    name = uuid.uuid4().hex
    with Connection("memory://") as connection:
        queue = Queue(name, Exchange(name), routing_key=name)(connection.channel())
        queue.declare()
        yield connection, queue


def passed_on(
    line: tuple[Connection, Queue], body: str | bytes, changed: dict[str, Any]
) -> Message:
    """The message as a worker gets it."""
    connection, queue = line
    is_text = isinstance(body, str)
    connection.Producer().publish(
        body,
        exchange=queue.name,
        routing_key=queue.name,
        content_type="application/json" if is_text else "application/data",
        content_encoding="utf-8" if is_text else "binary",
        headers=headers(changed),
    )
    found = queue.get()
    assert found is not None
    return found


@pytest.mark.parametrize("name", SENSELESS)
def test_a_senseless_message_is_known(name: str, line: tuple[Connection, Queue]) -> None:
    assert not is_sound(passed_on(line, *SENSELESS[name]))


def test_a_forged_message_of_the_right_form_is_heard(line: tuple[Connection, Queue]) -> None:
    assert is_sound(passed_on(line, GOOD, {}))


def test_our_own_bells_are_heard(settings: Settings) -> None:
    need = uuid.uuid4().hex
    bell.configure(settings)
    try:
        bell.send("job_x", need=need)
        with bell.celery.connection_for_write() as connection:
            found = Queue(f"jobs-{need}")(connection.channel()).get()
    finally:
        bell.configure(get_settings())
    assert found is not None
    assert is_sound(found)
