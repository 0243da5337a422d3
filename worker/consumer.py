"""How a worker takes messages: as Celery does, but one that makes no sense does not end it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import structlog
from celery.utils.log import get_logger
from celery.worker import consumer, state
from kombu.message import Message

_log = structlog.get_logger(__name__)


class Consumer(consumer.Consumer):
    """Throws away whatever Celery fails at.

    Celery takes the form of a message on trust: a body that is no list, or headers without an id,
    would end the worker. For a pool that works in the thread which takes the messages.
    """

    connection_errors: tuple[type[Exception], ...]

    def create_task_handler(self, *arguments: Any, **options: Any) -> Callable[[Message], None]:
        """Return what is called with every message."""
        handle = super().create_task_handler(*arguments, **options)

        def on_message(message: Message) -> None:
            try:
                handle(message)
            except self.connection_errors:
                raise
            except Exception as error:  # noqa: BLE001  # whatever a forger thinks of
                _log.error("message_senseless", error=type(error).__name__)
                if not message.acknowledged:
                    message.reject_log_error(get_logger(__name__), self.connection_errors)
                # Nothing is at work any more, whatever Celery was about to begin; it takes no other
                # message while it thinks so.
                state.reset_state()

        return on_message
