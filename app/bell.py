"""The one Celery object. Its messages are doorbells: a job id and nothing else.

A message may be lost, doubled, reordered or forged without harm, because the job's row decides.
"""

from __future__ import annotations

import threading
from typing import Any

from celery import Celery

from app.settings import Settings, get_settings

RUN_JOB = "jobs.run"
"""Name of the only task."""

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


def send(*job_ids: str) -> None:
    """Ring for these jobs.

    It fails after a few seconds where the broker is away or mute; a worker's own connection waits
    for it for ever.

    Raises:
        Exception: of the transport, whichever it is.
    """
    with celery.connection_for_write(transport_options={"max_retries": 0}) as connection:
        for job_id in job_ids:
            celery.send_task(RUN_JOB, [job_id], connection=connection, retry=False)


def nudge() -> None:
    """Wake the dispatcher of this process: a job may have become due."""
    nudged.set()


def ping() -> None:
    """Reach the broker, or fail within a few seconds.

    Raises:
        Exception: of the transport, whichever it is.
    """
    with celery.connection_for_write(transport_options={"max_retries": 0}) as connection:
        connection.ensure_connection(max_retries=1, timeout=2)


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
