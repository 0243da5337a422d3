"""Two workers that share PostgreSQL, Redis and a bucket, and nothing else; one dies at work.

The intervals are those that are shipped, so this takes minutes: a lease of 60 s has to run out.
"""

from __future__ import annotations

import contextlib
import random
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session

from app.settings import Settings
from app.store import clock
from app.store.bucket import Bucket
from app.store.tables import Job
from tests.chaos.checker import check, settle
from tests.chaos.nemesis import WORKING, Nemesis, kill_tree
from tests.chaos.sizes import first, measured, strikes
from tests.chaos.world import World
from tests.e2e.client import Client
from tests.e2e.stack import Distributed

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.postgres,
    pytest.mark.redis,
    pytest.mark.timeout(36_000),
]

LEASE_SECONDS = Settings.model_fields["lease_seconds"].default
PROMISED_SECONDS = 75.0
PATIENCE_SECONDS = 300.0
NAMES = ("one", "two")


class Jobs:
    """Jobs as the database sees them.

    Args:
        database_url: where they are.
    """

    def __init__(self, database_url: str) -> None:
        self._engine = create_engine(database_url)

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()

    def now(self) -> float:
        """The database's time."""
        with Session(self._engine) as session:
            return float(session.scalars(select(clock.now())).one())

    def wait_for_work(self) -> str:
        """Wait until a runner is in the middle of an unlearn job; return its worker."""
        chosen = select(Job.lease_owner).where(WORKING, Job.kind == "unlearn").limit(1)
        for _ in _moments("no job ever works"):
            with Session(self._engine) as session:
                if (owner := session.scalar(chosen)) is not None:
                    return owner
        raise AssertionError

    def of(self, owner: str) -> dict[str, int]:
        """All jobs that a worker holds, with the number of the claim."""
        mine = (Job.status == "running") & (Job.lease_owner == owner)
        with Session(self._engine) as session:
            found = session.execute(select(Job.id, Job.epoch).where(mine))
            return {row.id: row.epoch for row in found}

    def claimed_again(self, job_id: str, epoch: int) -> tuple[float, str]:
        """Wait for the next claim of a job; return its time and the worker.

        A claim holds for a lease from its moment on; if it was renewed before we looked, the time
        is a little late.
        """
        for _ in _moments(f"{job_id} is never claimed again"):
            with Session(self._engine) as session:
                job = session.scalars(select(Job).where(Job.id == job_id)).one()
                if job.lease_until is not None and job.epoch > epoch:
                    return job.lease_until - LEASE_SECONDS, str(job.lease_owner)
                assert job.epoch == epoch, "it ended before we looked"
        raise AssertionError


def _moments(complaint: str) -> Iterator[None]:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        yield
        time.sleep(0.1)
    raise AssertionError(complaint)


@dataclass
class Site:
    """An API and two workers, each with a folder of its own.

    Args:
        api: alone in its stack.
        workers: by name, each alone in its stack.
        jobs: of their database.
    """

    api: Distributed
    workers: dict[str, Distributed]
    jobs: Jobs

    def of(self, owner: str) -> Distributed:
        """The worker that calls itself so."""
        for name, stack in self.workers.items():
            if f"-{stack.processes[name].pid}-" in owner:
                return stack
        raise AssertionError(f"nobody is {owner}")

    def strike(self) -> float:
        """Kill a worker in the middle of a job, with all it started; heal it afterwards.

        Returns:
            Seconds until the last of its jobs was claimed by the other worker.
        """
        owner = self.jobs.wait_for_work()
        stack = self.of(owner)
        (name,) = stack.processes
        killed_at = self.jobs.now()
        kill_tree(stack.processes[name].pid)
        assert stack.wait_for_death(name) == -signal.SIGKILL
        held = self.jobs.of(owner)
        again = [self.jobs.claimed_again(*each) for each in held.items()]
        stack.start_worker(name)
        stack.wait_for_line(name, "worker_ready")
        if not again:  # the job ended just before
            return self.strike()
        assert owner not in {by for _, by in again}
        return max(at for at, _ in again) - killed_at


@pytest.fixture
def site(
    tmp_path: Path, postgres_url: str, redis_url: str, s3_settings: dict[str, object]
) -> Iterator[Site]:
    def stack(name: str) -> Distributed:
        folder = tmp_path / name
        folder.mkdir()
        made = Distributed(folder, postgres_url, redis_url, **s3_settings)
        closing.callback(made.stop)
        return made

    with ExitStack() as closing:
        jobs = Jobs(postgres_url)
        closing.callback(jobs.close)
        made = Site(stack("api"), {name: stack(name) for name in NAMES}, jobs)
        made.api.prepare()
        made.api.start_api()
        for name, worker in made.workers.items():
            worker.start_worker(name)
        made.api.wait_until("/readyz")
        for name, worker in made.workers.items():
            worker.wait_for_line(name, "worker_ready")
        yield made


def test_a_mixed_load_outlives_a_worker(
    site: Site, tmp_path: Path, postgres_url: str, s3_settings: dict[str, object]
) -> None:
    rng, kills = random.Random(first()), strikes(few=1)
    bucket = Bucket(Settings(data_dir=tmp_path / "bucket", **s3_settings))  # type: ignore[arg-type]

    def keys() -> set[str]:
        return {key for key, _ in bucket.keys()}  # noqa: SIM118  # no dict

    nemesis = Nemesis(postgres_url, rng)
    delays = []
    with Client(site.api.url, site.api.key) as client, contextlib.closing(nemesis):
        world = World(client, tmp_path, rng, epochs=60)
        world.build(num_models=3)
        evidence = set()
        for number in range(kills):
            load(world, number)
            delays.append(site.strike())
            evidence |= look(world)
        nemesis.rest()
        for report in evidence:
            assert client.get(f"/jobs/{report}")["status"] == "succeeded"
    settle(postgres_url, tmp_path, keys=keys)
    for name, worker in site.workers.items():
        assert worker.stop_one(name) == 0, worker.log(name)
        assert not list((worker.data_dir / "scratch").iterdir()), "its successor clears away"
    counts = check(postgres_url, tmp_path, world, keys, lambda key: bucket.fetch(key, tmp_path))
    measured(kills=kills, longest_takeover_seconds=round(max(delays), 1), **counts)
    assert max(delays) <= PROMISED_SECONDS


def load(world: World, round_number: int) -> None:
    """A new dataset and model, and requests for records, subjects and, once, a class."""
    of_records, of_subjects, of_class = world.models
    if round_number == 0:
        world.forget(of_class, {"type": "class", "class": 7})
    world.upload(1)
    for number in range(3):
        subject = f"s{3 * round_number + number:03d}"
        world.forget(of_subjects, {"type": "subject", "subject_ref": subject})
        ids = [f"r{9 * round_number + 3 * number + each:04d}" for each in range(3)]
        world.forget(of_records, {"type": "record_ids", "record_ids": ids})


def look(world: World) -> set[str]:
    """Ask for an audit and an oracle of the model that forgot a class; return their jobs."""
    first_asked = next(iter(world.acknowledged))
    world.client.wait(
        f"/unlearn-requests/{first_asked}", "status", "completed", seconds=PATIENCE_SECONDS
    )
    path = f"/models/{world.models[2]}/versions/@serving"
    made = set()
    for what, body in (("audits", {"audits": ["accuracy", "sanity"]}), ("oracle", {})):
        answer = world.client.http.post(f"{path}/{what}", json=body)
        assert answer.status_code == 202, answer.text
        made.add(str(answer.json()["id"]))
    return made
