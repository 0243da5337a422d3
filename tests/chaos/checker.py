"""What must hold once everything has come to rest, whatever was killed before."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from sqlalchemy import create_engine, func, select
from sqlalchemy.orm import Session

from app.store import status
from app.store.blobs import OWNER
from app.store.tables import Dataset, Job, Model, Request, Trash, Version
from tests.chaos import content
from tests.chaos.world import World

Keys = Callable[[], set[str]]
"""Lists all blobs."""
Fetch = Callable[[str], Path]
"""Returns a local file with the bytes of a blob."""


def check(
    database_url: str,
    data_dir: Path,
    world: World,
    keys: Keys | None = None,
    fetch: Fetch | None = None,
) -> dict[str, int]:
    """Hold the database and the folder against what was acknowledged.

    Args:
        database_url: where the rows are.
        data_dir: of the workers.
        world: that asked.
        keys: of the blobs, where they do not lie in ``data_dir``.
        fetch: one of them, likewise.

    Returns:
        What was counted, by name.
    """
    engine = create_engine(database_url)
    with Session(engine) as session:
        requests = session.scalars(select(Request)).all()
        jobs = session.scalars(select(Job)).all()
        _check_requests(requests, world)
        _check_jobs(jobs)
        retrained = 0
        for model in world.models:
            versions = _check_chain(session, model, requests)
            _check_content(
                versions, jobs, requests, world, fetch or data_dir.joinpath("blobs").joinpath
            )
            retrained += len(versions) - 1
        assert _blobs(session, keys or _files(data_dir)) == (set(), set(), 0)
    engine.dispose()
    left = list((data_dir / "scratch").glob("*/*/out"))
    assert not left, f"scratch folders of runners were left: {left}"
    return {
        "requests": len(world.acknowledged),
        "jobs": len(jobs),
        "lost": len(_lost(requests, world)),
        "applied_twice": _applied_twice(requests),
        "versions_retrained_to_the_bit": retrained,
    }


def _lost(requests: Sequence[Request], world: World) -> set[str]:
    kept = {request.id for request in requests if request.status == "completed"}
    return {*world.acknowledged} - kept


def _applied_twice(requests: Sequence[Request]) -> int:
    """How many records of a model were forgotten more than once."""
    rows = Counter((request.model_id, row) for request in requests for row in request.rows.tolist())
    return sum(times > 1 for times in rows.values())


def _check_requests(requests: Sequence[Request], world: World) -> None:
    lost = _lost(requests, world)
    found = [(r.id, r.status, r.problem, r.job_id) for r in requests if r.id in lost]
    assert not lost, f"acknowledged requests were lost: {lost}; of these the rows are {found}"
    assert not _applied_twice(requests), "a record was forgotten twice"
    assert len(requests) == len(world.acknowledged), "a request appeared twice"
    for request in requests:
        assert request.status == "completed", (request.id, request.status, request.problem)
        assert request.outcome == "erased_exact"
        assert request.applied_version_id is not None


def _check_jobs(jobs: Sequence[Job]) -> None:
    for job in jobs:
        assert job.status in status.JOB_TERMINAL, (job.id, job.kind, job.status)
        # Measuring a version that was replaced in the meantime is called off.
        fine = ("succeeded", "cancelled") if job.kind == "prepare" else ("succeeded",)
        assert job.status in fine, (job.id, job.kind, job.error)
        assert job.finished_at is not None
        assert job.lease_until is None


def _check_chain(session: Session, model_id: str, requests: Sequence[Request]) -> Sequence[Version]:
    versions = session.scalars(
        select(Version)
        .where(Version.model_id == model_id, Version.role == "chain")
        .order_by(Version.number)
    ).all()
    assert [version.number for version in versions] == list(range(1, len(versions) + 1))
    assert [version.parent_id for version in versions] == [
        None,
        *[version.id for version in versions[:-1]],
    ]
    model = session.scalars(select(Model).where(Model.id == model_id)).one()
    assert model.current_version_id == versions[-1].id
    assert [version.status for version in versions] == [
        *["withdrawn"] * (len(versions) - 1),
        "ready",
    ]
    jobs = {version.id: version.job_id for version in versions[1:]}
    assert len(set(jobs.values())) == len(jobs), "a job published twice"
    ours = [request for request in requests if request.model_id == model_id]
    assert {request.applied_version_id for request in ours} == set(jobs)
    for request in ours:
        assert jobs[str(request.applied_version_id)] == request.job_id
    return versions


def _check_content(
    versions: Sequence[Version],
    jobs: Sequence[Job],
    requests: Sequence[Request],
    world: World,
    fetch: Fetch,
) -> None:
    """Retrain every version of a chain; compare digests, and the bytes of the one in force."""
    seeds = {job.id: int(job.options["seed"]) for job in jobs if job.kind == "unlearn"}
    applied = [
        (
            seeds[str(version.job_id)],
            [
                world.acknowledged[request.id][1]
                for request in requests
                if request.applied_version_id == version.id
            ],
        )
        for version in versions[1:]
    ]
    expected = content.chain(world.digest, applied, world.epochs)
    assert [version.digest for version in versions] == expected, "other weights were published"
    bytes_in_force = fetch(str(versions[-1].blob)).read_bytes()
    assert hashlib.sha256(bytes_in_force).hexdigest() == expected[-1], "other weights are served"


def settle(
    database_url: str, data_dir: Path, seconds: float = 300.0, keys: Keys | None = None
) -> None:
    """Wait until the sweeper of a fresh worker has removed what the dead left behind."""
    engine = create_engine(database_url)
    deadline = time.monotonic() + seconds
    while True:
        with Session(engine) as session:
            missing, orphans, trash = _blobs(session, keys or _files(data_dir))
        if not (missing or orphans or trash):
            break
        assert time.monotonic() < deadline, (missing, orphans, trash)
        time.sleep(0.2)
    engine.dispose()


def _files(data_dir: Path) -> Keys:
    root = data_dir / "blobs"
    return lambda: {
        file.relative_to(root).as_posix()
        for file in root.rglob("*")
        if file.is_file() and file != root / OWNER
    }


def _blobs(session: Session, keys: Keys) -> tuple[set[str], set[str], int]:
    """Rows without bytes, bytes without a row, and keys still in the trash."""
    columns = (Dataset.blob, Version.blob, Version.importance_blob, Model.bank_blob)
    expected: set[str] = set()
    for column in columns:
        expected |= {str(key) for key in session.scalars(select(column).where(column.is_not(None)))}
    files = keys()
    trash = session.scalar(select(func.count()).select_from(Trash)) or 0
    return expected - files, files - expected, trash
