"""The one Celery object. Its messages are doorbells: a job id and nothing else.

A message may be lost, doubled, reordered or forged without harm, because the rows decide: whoever
hears a bell takes the job whose turn it is by then.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

from celery import Celery
from kombu import Connection, Exchange, Queue

from app.settings import Settings, get_settings

RUN_JOB = "jobs.run"
"""Name of the only task."""

MOST_WAITING = 64
"""Bells that may wait at once for workers of one kind; more if more jobs are due at once."""

nudged = threading.Event()
"""Set by ``nudge``; the dispatcher of this process waits for it."""


def options(settings: Settings) -> dict[str, Any]:
    """Celery's configuration: early acknowledgement, no results, nothing that Celery decides."""
    return {
        "broker_url": settings.broker_url,
        "result_backend": None,
        "task_acks_late": False,
        "task_reject_on_worker_lost": False,
        "task_ignore_result": True,
        "task_serializer": "json",
        "accept_content": ["json"],
        "worker_prefetch_multiplier": 1,
        # Redis only: elsewhere Celery warns and ignores it.
        "worker_disable_prefetch": settings.broker_url.startswith("redis"),
        "worker_enable_remote_control": False,
        "worker_send_task_events": False,
        "worker_hijack_root_logger": False,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_pool_acquire_timeout": 2.0,
        "broker_transport_options": _transport_options(settings),
    }


celery = Celery("lethe", set_as_current=False)
celery.add_defaults(lambda: options(get_settings()))


def configure(settings: Settings) -> None:
    """Use these settings from now on."""
    celery.conf.update(options(settings))


def listen_to(needs: Iterable[str]) -> None:
    """Have a worker of this process hear the bells for this kind of work alone."""
    celery.conf.task_queues = [_queue_of(need) for need in needs]


def send(*job_ids: str, need: str = "cpu") -> None:
    """Ring for these jobs, where workers hear that can do what they need.

    Where many bells wait unheard no more are rung: whoever hears one takes the job whose turn it
    is. It fails after a few seconds where the broker is away or mute; a worker's own connection
    waits for it for ever.

    Raises:
        Exception: of the transport, whichever it is.
    """
    with celery.connection_for_write(transport_options={"max_retries": 0}) as connection:
        room = max(MOST_WAITING, len(job_ids)) - _waiting(connection, need)
        for job_id in job_ids[: max(room, 0)]:
            celery.send_task(
                RUN_JOB, [job_id], connection=connection, retry=False, queue=_queue(need)
            )


def nudge() -> None:
    """Wake the dispatcher of this process: a job may have become due."""
    nudged.set()


def _waiting(connection: Connection, need: str) -> int:
    """How many bells of this kind nobody has heard yet."""
    # The channel that rings, too: one that is opened here would try for longer to be connected.
    declared: Any = _queue_of(need).bind(connection.default_channel).queue_declare()
    return int(declared.message_count)


def _queue_of(need: str) -> Queue:
    return Queue(_queue(need), Exchange(_queue(need)), routing_key=_queue(need))


def _queue(need: str) -> str:
    return f"jobs-{need}"


def _transport_options(settings: Settings) -> dict[str, Any]:
    if settings.broker_url.startswith("memory"):
        return {"polling_interval": 0.02}
    return {
        "visibility_timeout": 900,
        "socket_timeout": 5,
        "socket_connect_timeout": 2,
        "socket_keepalive": True,
        "health_check_interval": 25,
        "retry_on_timeout": False,
        "global_keyprefix": "lethe:",
    }
