"""The task ``jobs.run``: claim, have it done by a runner, and end it in one transaction.

Whatever is not foreseen here propagates once the runner is gone: Celery logs it, the lease runs
out, and the sweeper has the job tried again.
"""

from __future__ import annotations

from functools import partial

import structlog
from celery.worker import state

from app import bell
from app.logs import scrubbed
from app.store import jobs
from app.store.failpoints import failpoint
from app.store.jobs import Claim, LeaseLost
from app.store.session import settings, transaction
from worker import traces
from worker.attempt import attempt
from worker.lease import insist
from worker.results import Ending
from worker.station import Station, station
from worker.supervisor import RunnerDied

_log = structlog.get_logger(__name__)


@bell.celery.task(name=bell.RUN_JOB)
def run_job(job_id: str) -> None:
    """Do the job whose turn it is; the one that was rung for, if nothing came in between.

    Any bell is good for one job, whatever it says: a forged or a second one finds what is due, or
    nothing.
    """
    here = station()
    if here.closing.is_set() or here.is_broken:
        return
    failpoint("worker.after_receive")
    with transaction() as session:
        claim = jobs.claim_next(session, here.name, settings().worker_needs)
        failpoint("worker.before_claim_commit")
    if claim is None:
        return
    failpoint("worker.after_claim")
    _log.info("bell_heard", named=job_id, taken=claim.job.id)
    do(claim, here)
    failpoint("worker.after_cleanup")
    bell.nudge()
    if here.is_broken:
        # Celery ends the process with this status, and its supervisor starts another.
        state.should_stop = 1


def do(claim: Claim, here: Station) -> None:
    """Have a claimed job done, and end it; quietly where it is somebody else's by then."""
    with traces.of(claim):
        _log.info("job_started", kind=claim.job.kind)
        try:
            _run(claim, here)
        except LeaseLost as error:
            _log.warning("lease_lost", reason=str(error))


def _run(claim: Claim, here: Station) -> None:
    if claim.nothing_left:
        return _end(claim, partial(jobs.finish_without_influence, claim=claim))
    runner = here.bench.take()
    try:
        _end(claim, attempt(claim, runner, here))
    except RunnerDied as death:
        _log.warning(
            "runner_died", reason=death.reason.partition(":")[0], stack=scrubbed(death.stderr)
        )
        _end(
            claim,
            partial(
                jobs.fail, claim=claim, code="runner_died", detail=death.reason, retryable=True
            ),
        )
    finally:
        runner.close()
        if not (here.closing.is_set() or here.is_broken):
            here.bench.refill()


def _end(claim: Claim, ending: Ending) -> None:
    def act() -> str:
        with transaction() as session:
            ending(session)
            failpoint("worker.before_end_commit")
            return jobs.get(session, claim.job.tenant_id, claim.job.id).status

    status = insist(act)
    failpoint("worker.after_end_commit")
    _log.info("job_ended", status=status)
    traces.ended(status)
