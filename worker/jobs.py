"""The task ``jobs.run``: claim, have it done by a runner, and end it in one transaction.

Whatever is not foreseen here propagates once the runner is gone: Celery logs it, the lease runs
out, and the sweeper has the job tried again.
"""

from __future__ import annotations

import errno
from functools import partial

import structlog

from app import bell
from app.store import jobs
from app.store.jobs import Claim, LeaseLost, Renewal
from app.store.session import settings, transaction
from worker import steps
from worker.attempt import Draining, accompany
from worker.lease import CancelRequested, Heartbeat, insist
from worker.protocol import Failed, Progress
from worker.station import Station, station
from worker.steps import Ending
from worker.supervisor import Runner, RunnerDied

STORAGE_FULL_SECONDS = 60.0
"""Wait before a job is tried again for which the disk had no room."""

_log = structlog.get_logger(__name__)


@bell.celery.task(name=bell.RUN_JOB)
def run_job(job_id: str) -> None:
    """Do one job, once; a second bell for it finds nothing to claim."""
    here = station()
    if here.closing.is_set():
        return
    with transaction() as session:
        claim = jobs.claim(session, job_id, here.name)
    if claim is None:
        return
    with structlog.contextvars.bound_contextvars(job=job_id, epoch=claim.epoch):
        _log.info("job_started", kind=claim.job.kind)
        try:
            _run(claim, here)
        except LeaseLost as error:
            _log.warning("lease_lost", reason=str(error))
    bell.nudge()


def _run(claim: Claim, here: Station) -> None:
    if claim.nothing_left:
        return _end(partial(jobs.finish_without_influence, claim=claim))
    runner = here.bench.take()
    try:
        _end(_attempt(claim, runner, here))
    except RunnerDied as death:
        _log.warning("runner_died", reason=death.reason, stderr=death.stderr)
        _end(
            partial(jobs.fail, claim=claim, code="runner_died", detail=death.reason, retryable=True)
        )
    finally:
        runner.close()
        if not here.closing.is_set():
            here.bench.refill()


def _attempt(claim: Claim, runner: Runner, here: Station) -> Ending:
    """Have the work done while the lease is renewed; return the transaction that is left."""
    try:
        runner.give(steps.order(claim, runner.out))
        with Heartbeat(partial(_renew, claim), settings().heartbeat_seconds) as beat:
            event = accompany(
                runner,
                beat,
                closing=here.closing,
                stall_seconds=settings().stall_seconds,
                settled=here.bench.refill,
            )
            if isinstance(event, Failed):
                _log.warning("job_refused", code=event.code, stderr=runner.stderr)
                return partial(
                    jobs.fail, claim=claim, code=event.code, detail=event.detail, retryable=False
                )
            return steps.seal(claim, event.result, runner.out)
    except CancelRequested:
        return partial(jobs.cancelled, claim=claim)
    except Draining:
        return partial(jobs.release, claim=claim)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _log.error("storage_full")
        return partial(jobs.release, claim=claim, delay=STORAGE_FULL_SECONDS)


def _renew(claim: Claim, progress: Progress | None) -> Renewal:
    news = {} if progress is None else progress.model_dump(exclude={"event"})
    with transaction() as session:
        return jobs.renew(session, claim, **news)


def _end(ending: Ending) -> None:
    def act() -> None:
        with transaction() as session:
            ending(session)

    insist(act)
    _log.info("job_ended")
