"""A worker that froze beyond its lease wakes up, and changes nothing."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy import select

from app.settings import Settings
from app.store import jobs
from app.store import session as sessions
from app.store.session import reading, transaction
from app.store.tables import Record
from tests.worker.test_jobs import dataset_of, find, queue

ROOT = Path(__file__).resolve().parents[2]
WORKER = """
import sys
sys.path.insert(0, {root!r})
from app.settings import Settings
from app.store import session
session.configure(Settings.model_validate_json({settings!r}))
from worker import jobs
from worker.station import Station
here = Station(module="tests.worker.stand_in_ingest")
jobs.station = lambda: here
jobs.run_job({job!r})
here.close()
"""


@pytest.mark.parametrize("what", ["hang", "nap"])
def test_a_frozen_worker_is_fenced(what: str, settings: Settings) -> None:
    short = settings.model_copy(update={"lease_seconds": 1.0})
    sessions.configure(short)
    job_id = queue(what)
    code = WORKER.format(root=str(ROOT), settings=short.model_dump_json(), job=job_id)
    with subprocess.Popen([sys.executable, "-c", code]) as worker:
        while find(job_id).progress != 0.5:
            time.sleep(0.02)
        worker.send_signal(signal.SIGSTOP)
        take_over(job_id)
        worker.send_signal(signal.SIGCONT)
        assert worker.wait(30) == 0
    job = find(job_id)
    assert (job.status, job.epoch, job.lost_leases) == ("running", 2, 1)
    assert dataset_of(job_id).status == "validating"
    with reading() as session:
        assert session.scalars(select(Record)).all() == []


def take_over(job_id: str) -> None:
    """Sweep until the lease has run out, and claim the job with a lease that lasts."""
    while find(job_id).status != "queued":
        with transaction() as session:
            jobs.sweep(session)
        time.sleep(0.05)
    sessions.configure(sessions.settings().model_copy(update={"lease_seconds": 60.0}))
    with transaction() as session:
        assert jobs.claim(session, job_id, "thief") is not None
