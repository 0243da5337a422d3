"""``celery -A worker.main worker``: one worker process, one job at a time.

The pool is always ``solo``: the task only supervises a child, so a pool process between the two
would add nothing but a second thing to kill. Run one such process per accelerator. On SIGTERM the
job at work gets a few seconds, then goes back to the queue with its attempt given back; whatever
happens to the process after that, the lease recovers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import structlog
from celery.signals import (
    setup_logging,
    worker_init,
    worker_ready,
    worker_shutdown,
    worker_shutting_down,
)

from app import logs, tracing
from app.bell import celery, listen_to
from app.dispatch import Dispatcher
from app.settings import get_settings
from app.store import keyed
from app.store.session import at_head, settings
from worker import floors, jobs
from worker.lease import insist
from worker.station import Station, station
from worker.sweep import Sweeper

celery.conf.update(
    worker_pool="solo",
    worker_concurrency=1,
    worker_redirect_stdouts=False,
    worker_consumer="worker.consumer:Consumer",
)
listen_to(settings().worker_needs)
_log = structlog.get_logger(__name__)


class _Helpers:
    """The threads beside the job: the dispatcher that rings, the sweeper that recovers."""

    def __init__(self, here: Station) -> None:
        self._dispatcher = Dispatcher()
        self._dispatcher.start()
        self._sweeper = Sweeper(here.name, "celery", here.sandbox, here.memory)
        self._sweeper.start()

    def stop(self) -> None:
        self._dispatcher.stop()
        self._sweeper.stop()


_running: list[_Helpers] = []


def _or_end(handler: Callable[..., None]) -> Callable[..., None]:
    """Have an error end the process: Celery would log it and work on without what is missing."""

    @wraps(handler)
    def guarded(*args: Any, **options: Any) -> None:
        try:
            handler(*args, **options)
        except Exception:  # noqa: BLE001  # Celery hides whatever a handler raises
            _log.exception("worker_not_started")
            raise SystemExit(1) from None

    return guarded


@worker_init.connect
@setup_logging.connect
def set_up_logs(**_: object) -> None:
    """Log and trace like every other process; Celery's own options for logs have no effect.

    First of all: what is logged before it would show the values of variables.
    """
    logs.configure(get_settings())
    tracing.start(get_settings())


@worker_init.connect
@_or_end
def refuse_to_start(sender: Any, **_: object) -> None:
    """Refuse a pool of several jobs, old libraries, a database of another age or pepper.

    Also too thin a sandbox, and the want of a named accelerator.

    A database that is away is waited for.
    """
    if sender.pool_cls.__module__ != "celery.concurrency.solo":
        raise SystemExit("this worker runs with -P solo; start one process per job slot")
    if fault := floors.fault():
        raise SystemExit(fault)
    if not insist(at_head):
        raise SystemExit("the database is not up to date; run `alembic upgrade head`")
    if fault := insist(keyed.pepper_fault):
        raise SystemExit(fault)
    station()


@worker_ready.connect
@_or_end
def open_station(**_: object) -> None:
    """Start the threads and the first spare runner."""
    here = station()
    _running.append(_Helpers(here))
    here.bench.refill()
    _log.info("worker_ready", worker=here.name, sandbox=here.sandbox, task=jobs.run_job.name)


@worker_shutting_down.connect
def announce_closing(**_: object) -> None:
    """Tell the job at work that the process ends."""
    station().closing.set()


@worker_shutdown.connect
def close_station(**_: object) -> None:
    """Stop the threads, end the spare runner, remove the home folder."""
    try:
        while _running:
            _running.pop().stop()
    finally:
        station().close()
        tracing.stop()
