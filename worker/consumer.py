"""How a worker takes messages: as Celery does, but none that it could not have sent itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import structlog
from celery.utils.log import get_logger
from celery.worker import consumer
from kombu.message import Message

from app import bell

_UNLIMITED = [None, None]
_EMPTY: tuple[Any, ...] = ([], {}, _UNLIMITED)
_log = structlog.get_logger(__name__)


class Consumer(consumer.Consumer):
    """Throws messages of another form away before Celery sees them.

    Celery takes the form on trust: a body that is no list, or headers without an id, would end the
    worker, some of them only after they were acknowledged.
    """

    connection_errors: tuple[type[Exception], ...]

    def create_task_handler(self, *arguments: Any, **options: Any) -> Callable[[Message], None]:
        """Return what is called with every message."""
        handle = super().create_task_handler(*arguments, **options)

        def on_message(message: Message) -> None:
            if is_sound(message):
                handle(message)
            else:
                _log.error("message_senseless")
                message.reject_log_error(get_logger(__name__), self.connection_errors)

        return on_message


def is_sound(message: Message) -> bool:
    """Whether a message has the form of those that ``app.bell`` sends, whichever job it names."""
    headers = message.headers
    if not isinstance(headers, dict) or not all(map(_is_plain, headers.values())):
        return False
    try:
        body = message.payload
    except Exception:  # noqa: BLE001  # as many kinds as there are ways to write nonsense
        return False
    return (
        headers.get("task") == bell.RUN_JOB
        and isinstance(headers.get("id"), str)
        and isinstance(headers.get("retries", 0), int)
        and headers.get("timelimit", _UNLIMITED) == _UNLIMITED
        and headers.get("eta") is headers.get("expires") is None
        and isinstance(body, list)
        and [type(part) for part in body] == [list, dict, dict]
        and not any(body[2].values())
    )


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | int) or value in _EMPTY
