"""Stay with a runner until it is done, or until there is a reason to end it."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from functools import partial

import structlog

from app.logs import scrubbed
from app.store import jobs
from app.store.blobs import BlobMissing, StorageAway
from app.store.jobs import Claim, Renewal
from app.store.session import settings, transaction
from worker import steps, traces
from worker.lease import CancelRequested, Heartbeat
from worker.protocol import Done, Failed, Progress
from worker.results import Ending
from worker.station import Station
from worker.supervisor import Runner, RunnerDied

TICK_SECONDS = 0.1
DRAIN_SECONDS = 5.0
"""How long a job may go on after its worker was asked to end."""

SETTLED_SECONDS = 1.0
"""A job that lasts longer than this is not disturbed by the start of the next spare runner."""
STORAGE_FULL_SECONDS = 60.0
"""Wait before a job is tried again for which the disk had no room."""

STORAGE_AWAY_SECONDS = 30.0
"""Wait before a job is tried again for which the blob storage did not answer."""
MISSING = "Bytes that the job needs are not in the storage."

_log = structlog.get_logger(__name__)


class Draining(Exception):
    """The worker is ending, and the job would not have been done in time."""


def attempt(claim: Claim, runner: Runner, here: Station) -> Ending:
    """Have the work done while the lease is renewed; return the transaction that is left.

    Raises:
        RunnerDied: if the runner ended without a last word, or its work cannot be believed.
        LeaseLost: if the job belongs to somebody else now.
    """
    try:
        with Heartbeat(partial(_renew, claim), settings().heartbeat_seconds) as beat:
            runner.give(steps.order(claim, runner.out))
            event = accompany(
                runner,
                beat,
                closing=here.closing,
                stall_seconds=settings().stall_seconds,
                settled=here.bench.refill,
            )
            if isinstance(event, Done):
                return steps.seal(claim, event.result, runner.out)
    except CancelRequested:
        return partial(jobs.cancelled, claim=claim)
    except Draining:
        return partial(jobs.release, claim=claim)
    except StorageAway:
        return partial(jobs.release, claim=claim, delay=STORAGE_AWAY_SECONDS)
    except BlobMissing as error:
        _log.error("blob_missing", key=str(error))
        return partial(jobs.fail, claim=claim, code="blob_missing", detail=MISSING, retryable=True)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _log.error("storage_full")
        return partial(jobs.release, claim=claim, delay=STORAGE_FULL_SECONDS)
    _log.warning("job_refused", code=event.code, stack=scrubbed(runner.stderr))
    return partial(jobs.fail, claim=claim, code=event.code, detail=event.detail, retryable=False)


def accompany(
    runner: Runner,
    beat: Heartbeat,
    *,
    closing: threading.Event,
    stall_seconds: float,
    settled: Callable[[], None],
    drain_seconds: float = DRAIN_SECONDS,
) -> Done | Failed:
    """Return the last word of ``runner``, passing its progress on to ``beat``.

    Args:
        runner: has its order.
        beat: renews the lease meanwhile.
        closing: set when the worker is asked to end.
        stall_seconds: a runner that says nothing for so long is as good as dead.
        settled: called again and again once the job is under way.
        drain_seconds: how long the job may go on once ``closing`` is set.

    Raises:
        RunnerDied: if it ended without a last word, or stalled.
        LeaseLost: if the job belongs to somebody else now.
        CancelRequested: if the job is to be cancelled.
        Draining: if the worker ends first.
    """
    started = heard_at = time.monotonic()
    drained_at: float | None = None
    while True:
        event = runner.hear(TICK_SECONDS)
        beat.check()
        if isinstance(event, Done | Failed):
            return event
        now = time.monotonic()
        if event is not None:
            heard_at = now
        if isinstance(event, Progress):
            beat.tell(event)
            traces.enter(event)
        if now - heard_at > stall_seconds:
            raise RunnerDied(f"runner said nothing for {stall_seconds:g} s")
        if closing.is_set():
            drained_at = drained_at or now + drain_seconds
            if now >= drained_at:
                raise Draining
        elif now - started > SETTLED_SECONDS:
            settled()


def _renew(claim: Claim, progress: Progress | None) -> Renewal:
    news = {} if progress is None else progress.model_dump(exclude={"event"})
    with transaction() as session:
        return jobs.renew(session, claim, **news)
