"""The task ``jobs.run``: claim, have it done by a runner, and end it in one transaction.

Whatever is not foreseen here propagates once the runner is gone: Celery logs it, the lease runs
out, and the sweeper has the job tried again.
"""

from __future__ import annotations

from functools import partial

import structlog

from app import bell
from app.logs import scrubbed
from app.store import jobs
from app.store.jobs import Claim, LeaseLost
from app.store.session import transaction
from worker import traces
from worker.attempt import attempt
from worker.lease import insist
from worker.results import Ending
from worker.station import Station, station
from worker.supervisor import RunnerDied

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
    with traces.of(claim):
        _log.info("job_started", kind=claim.job.kind)
        try:
            _run(claim, here)
        except LeaseLost as error:
            _log.warning("lease_lost", reason=str(error))
    bell.nudge()


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
        if not here.closing.is_set():
            here.bench.refill()


def _end(claim: Claim, ending: Ending) -> None:
    def act() -> str:
        with transaction() as session:
            ending(session)
            return jobs.get(session, claim.job.tenant_id, claim.job.id).status

    status = insist(act)
    _log.info("job_ended", status=status)
    traces.ended(status)
