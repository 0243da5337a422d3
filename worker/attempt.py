"""Stay with a runner until it is done, or until there is a reason to end it."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from functools import partial

import structlog
from sqlalchemy.orm import Session

from app.store import jobs
from app.store.jobs import Claim, Renewal
from app.store.session import settings, transaction
from worker import sandbox, steps
from worker.lease import CancelRequested, Heartbeat
from worker.limits import Limits, OverLimit, Watch, of
from worker.parcels import lend
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

_log = structlog.get_logger(__name__)


class Draining(Exception):
    """The worker is ending, and the job would not have been done in time."""


def attempt(claim: Claim, runner: Runner, here: Station) -> Ending:
    """Have the work done while the lease is renewed; return the transaction that is left.

    Raises:
        RunnerDied: if the runner ended without a last word, or its work cannot be believed.
        LeaseLost: if the job belongs to somebody else now.
    """
    limits = of(claim)
    try:
        order = {**lend(steps.order(claim, runner.out), runner.inbox), "limits": limits.for_child()}
        runner.give(order)
        with Heartbeat(partial(_renew, claim), settings().heartbeat_seconds) as beat:
            event = accompany(
                runner,
                beat,
                closing=here.closing,
                stall_seconds=settings().stall_seconds,
                settled=here.bench.refill,
                limits=limits,
            )
            if isinstance(event, Done):
                return _noted(claim, runner, steps.seal(claim, event.result, runner.out))
    except CancelRequested:
        return partial(jobs.cancelled, claim=claim)
    except Draining:
        return partial(jobs.release, claim=claim)
    except OverLimit as over:
        _log.warning("runner_over_limit", code=over.code, reason=over.reason)
        event = Failed(event="failed", code=over.code, detail=over.reason, retryable=False)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _log.error("storage_full")
        return partial(jobs.release, claim=claim, delay=STORAGE_FULL_SECONDS)
    _log.warning("job_refused", code=event.code, stderr=runner.stderr)
    code = event.code
    if claim.job.kind == "convert" and code == "out_of_memory":
        code = "conversion_out_of_memory"
    refused = partial(jobs.fail, claim=claim, code=code, detail=event.detail, retryable=False)
    return _noted(claim, runner, refused)


def _noted(claim: Claim, runner: Runner, ending: Ending) -> Ending:
    """The same end, with the walls around the runner written down first."""
    told = {"level": sandbox.level(runner.walls), "walls": sorted(runner.walls)}

    def end(session: Session) -> None:
        jobs.note_sandbox(session, claim, told)
        ending(session)

    return end


def accompany(
    runner: Runner,
    beat: Heartbeat,
    *,
    closing: threading.Event,
    stall_seconds: float,
    settled: Callable[[], None],
    drain_seconds: float = DRAIN_SECONDS,
    limits: Limits | None = None,
) -> Done | Failed:
    """Return the last word of ``runner``, passing its progress on to ``beat``.

    Args:
        runner: has its order.
        beat: renews the lease meanwhile.
        closing: set when the worker is asked to end.
        stall_seconds: a runner that says nothing for so long is as good as dead.
        settled: called again and again once the job is under way.
        drain_seconds: how long the job may go on once ``closing`` is set.
        limits: what it may use.

    Raises:
        RunnerDied: if it ended without a last word, or stalled.
        OverLimit: if it used too much.
        LeaseLost: if the job belongs to somebody else now.
        CancelRequested: if the job is to be cancelled.
        Draining: if the worker ends first.
    """
    started = heard_at = time.monotonic()
    watch = None if limits is None else Watch(runner, limits)
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
        if watch is not None:
            watch.check(now)
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
