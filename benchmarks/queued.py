"""Ten thousand queued requests: how fast they are taken in, and what a full queue costs.

Twice for each database. First every request is a job of its own, the longest queue there can be: no
worker runs while the intake, the Redis list, a pass of the sweeper and pages of the lists are
measured, and then all of them are taken back through the API. Then requests share jobs, as equal
ones do, and one worker carries them out by retraining a tiny network. API, Redis, database,
generator and worker are on one machine; intake is a closed loop over 16 connections. The page is
written after each database; of one that is left out, it keeps what was measured before.

    python -m benchmarks.queued [--requests 10000] [--jobs 100] [--only SQLite] [--postgres URL]
        [--redis URL]
"""

from __future__ import annotations

import json
import tempfile
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from redis import Redis
from sqlalchemy import func, select

from app.settings import Settings
from app.store import jobs, tables
from app.store import session as sessions
from app.store.status import REQUEST_TERMINAL
from benchmarks.digits import await_prepared
from benchmarks.hardware import RESULTS, describe, parser
from benchmarks.launch import Place, api_alone, celery_worker, embedded
from benchmarks.load import Plan, run
from benchmarks.meanwhile import repeated
from benchmarks.postgres import SERVER, fresh_database, reachable
from benchmarks.tables import Row, quantile, write
from core import networks, weights
from worker.demo.service import Service

BROKER = "redis://127.0.0.1:6379/9"
QUEUES = ("lethe:jobs-cpu", "lethe:jobs-gpu")
PER_SECOND = {"SQLite": 80.0, "PostgreSQL": 150.0}
MOST_BELLS = 64
SWEEP_SECONDS = 0.5
PAGE_P99 = 0.2
CONNECTIONS = 16
PAGES = 200
SWEEPS = 20
PATIENCE_SECONDS = 7200.0
FEATURES = 16
RECORDS_PER_REQUEST_HELD = 2
"""Training records for every request, so that enough are left whatever is drawn."""
ARCHITECTURE = {"name": "mlp", "in_features": FEATURES, "hidden": [8], "num_classes": 10}
RECIPE = {"epochs": 1, "batch_size": 512, "optimizer": {"name": "sgd", "lr": 0.05}, "seed": 3}


@dataclass(frozen=True)
class Queued:
    """What one database was seen to do."""

    requests: int
    per_second: float
    errors: list[str]
    most_bells: int
    sweeps: list[float]
    pages: list[float]
    taken_back: dict[str, int]
    shared_per_second: float
    jobs: int
    carried_out: dict[str, int]
    seconds: float
    """From the start of the worker until every request was in a terminal state."""
    hardware: str


def main() -> None:
    """Measure both databases and write the table."""
    arguments = parser(__doc__)
    arguments.add_argument("--requests", type=int, default=10_000)
    arguments.add_argument("--jobs", type=int, default=100, help="that requests share")
    arguments.add_argument("--postgres", default=SERVER, help="URL of a server we may use")
    arguments.add_argument("--redis", default=BROKER, help="URL of an empty database")
    arguments.add_argument("--only", choices=PER_SECOND, help="measure one database")
    options = arguments.parse_args()
    with Redis.from_url(options.redis) as redis:
        if redis.dbsize():
            raise SystemExit(f"{options.redis} is not empty; name another with --redis")
    path = RESULTS / "queued.json"
    before = json.loads(path.read_text())["raw"] if path.exists() else {}
    found = {name: Queued(**each) for name, each in before.items()}
    for name in [options.only] if options.only else PER_SECOND:
        with tempfile.TemporaryDirectory() as folder, _place(name, Path(folder), options) as place:
            if place is not None:
                found[name] = _measure(place, options.requests, options.jobs)
                _write(found)


@contextmanager
def _place(name: str, folder: Path, options: Namespace) -> Iterator[Place | None]:
    """Yield where the service runs; None where its database does not answer."""
    data = folder / name.lower()
    if name == "SQLite":
        yield Place(data, broker_url=options.redis)
    elif reachable(options.postgres):
        with fresh_database(options.postgres) as url:
            yield Place(data, url, broker_url=options.redis)
    else:
        print("PostgreSQL is not measured: no server answers.")
        yield None


def _write(found: Mapping[str, Queued]) -> None:
    missing = [f"{name} was not measured." for name in PER_SECOND if name not in found]
    on = [f"{name}: {each.hardware}." for name, each in found.items()]
    write(
        "queued",
        "Queued requests",
        "python -m benchmarks.queued",
        [
            (__doc__ or "").partition("\n\n")[2].rpartition("\n\n")[0].replace("\n", " "),
            *on,
            *missing,
        ],
        [row for name, each in found.items() for row in _rows(name, each)],
        {name: asdict(each) for name, each in found.items()},
    )


def _measure(place: Place, num_requests: int, num_jobs: int) -> Queued:
    """Fill the queue of a fresh service twice: one job a request, then few jobs."""
    scratch = place.folder.with_name(f"{place.folder.name}-data")
    scratch.mkdir()
    with embedded(replace(place, broker_url="")) as running:
        model, ids = _register(running.service, scratch, RECORDS_PER_REQUEST_HELD * num_requests)
    settings = Settings(data_dir=place.folder, database_url=place.database_url, pepper=place.pepper)
    sessions.configure(settings)
    plan = Plan(
        port=0,
        key=place.key(),
        model=model,
        record_ids=ids,
        seconds=PATIENCE_SECONDS,
        rate=None,
        connections=CONNECTIONS,
        read_share=0.0,
        calls=num_requests - 1,  # the generator begins with one
        records_per_request=1,
        policy="exact",
    )
    with api_alone(place) as running, _bells(place.broker_url) as most_bells:
        alone = run(_with(plan, running.port, num_requests))
        print(f"{place.folder.name}: {len(alone.writes)} taken in", flush=True)
        sweeps = [_timed_sweep() for _ in range(SWEEPS)]
        pages = _pages(running.service)
        _take_back(running.service)
        taken_back = _statuses()
        print(f"{place.folder.name}: taken back", flush=True)
        shared = run(_with(plan, running.port, num_jobs))
        with sessions.reading() as session:
            open_jobs = select(func.count()).where(tables.Job.status == "queued")
            jobs_made = session.scalar(open_jobs) or 0
        print(f"{place.folder.name}: {jobs_made} jobs to carry out", flush=True)
        begun = time.monotonic()
        with celery_worker(place):
            while _open_requests() and time.monotonic() < begun + PATIENCE_SECONDS:
                time.sleep(1.0)
        seconds = time.monotonic() - begun
    carried_out = Counter(_statuses())
    carried_out.subtract(taken_back)
    sessions.configure(None)
    return Queued(
        requests=num_requests,
        per_second=len(alone.writes) / alone.seconds,
        errors=alone.errors + shared.errors,
        most_bells=max(most_bells),
        sweeps=sweeps,
        pages=pages,
        taken_back=taken_back,
        shared_per_second=len(shared.writes) / shared.seconds,
        jobs=jobs_made,
        carried_out={status: count for status, count in carried_out.items() if count},
        seconds=seconds,
        hardware=describe(),
    )


def _with(plan: Plan, port: int, seeds: int) -> Plan:
    return replace(plan, port=port, seeds=seeds, seed=seeds)


def _register(service: Service, scratch: Path, count: int) -> tuple[str, list[str]]:
    """Upload made-up records and a network that never saw them; wait until it is prepared."""
    rng = np.random.default_rng(0)
    data, file = scratch / "made-up.parquet", scratch / "made-up.safetensors"
    ids = [f"r{row:06d}" for row in range(count + 1000)]
    features = rng.standard_normal((len(ids), FEATURES), dtype=np.float32)
    table = {
        "id": ids,
        "label": pa.array(rng.integers(0, 10, len(ids)), pa.int64()),
        "features": pa.array(list(features), pa.list_(pa.float32())),
        "split": ["train"] * count + ["holdout"] * 1000,
    }
    pq.write_table(pa.table(table), data)
    weights.save(networks.build(networks.parse(ARCHITECTURE), seed=3), file)
    dataset = str(service.upload("/datasets", data, {"name": "made-up"})["id"])
    service.wait_ready(f"/datasets/{dataset}", lambda body: str(body["status"]))
    metadata = {
        "name": "made-up",
        "architecture": ARCHITECTURE,
        "preprocessing": {"scale": 1.0},
        "recipe": RECIPE,
        "dataset": dataset,
        "holdout": dataset,
    }
    model = str(service.upload("/models", file, metadata)["id"])
    await_prepared(service, model)
    return model, ids[:count]


@contextmanager
def _bells(broker_url: str) -> Iterator[list[int]]:
    """Look at the lengths of the Redis lists all the time; empty the database in the end."""
    lengths = [0]

    def look(_: float) -> None:
        lengths.append(max(redis.llen(queue) for queue in QUEUES))

    with Redis.from_url(broker_url) as redis:
        try:
            with repeated(look, every=0.1):
                yield lengths
        finally:
            redis.flushdb()


def _timed_sweep() -> float:
    begun = time.monotonic()
    with sessions.transaction() as session:
        jobs.sweep(session)
    return time.monotonic() - begun


def _pages(service: Service) -> list[float]:
    """Times of pages of a hundred, of requests and jobs in turn, deeper and deeper."""
    times: list[float] = []
    for resource in ("/unlearn-requests", "/jobs"):
        path = f"{resource}?limit=100"
        for _ in range(PAGES // 2):
            begun = time.monotonic()
            page = service.get(path)
            times.append(time.monotonic() - begun)
            after = page["next_cursor"]
            path = f"{resource}?limit=100" + (f"&after={after}" if after else "")
    return times


def _take_back(service: Service) -> None:
    """Have every request taken back, as its sender would."""
    while page := service.get("/unlearn-requests?limit=100&status=queued")["data"]:
        for request in page:
            service.http.delete(f"/unlearn-requests/{request['id']}").raise_for_status()


def _statuses() -> dict[str, int]:
    with sessions.reading() as session:
        rows = session.execute(
            select(tables.Request.status, func.count()).group_by(tables.Request.status)
        )
        return {str(status): int(count) for status, count in rows}


def _open_requests() -> int:
    return sum(count for status, count in _statuses().items() if status not in REQUEST_TERMINAL)


def _rows(name: str, found: Queued) -> list[Row]:
    p99, longest = quantile(found.pages, 0.99), max(found.sweeps)
    ended = sum(found.carried_out.values())
    said = ", ".join(f"{count} {status}" for status, count in found.carried_out.items())
    back = found.taken_back.get("cancelled", 0)
    return [
        Row(
            f"{name}, intake of {found.requests}, one job a request",
            f"{found.per_second:.0f} /s",
            f">= {PER_SECOND[name]:.0f} /s",
            found.per_second >= PER_SECOND[name],
        ),
        Row(f"{name}, intake into {found.jobs} jobs", f"{found.shared_per_second:.0f} /s"),
        Row(f"{name}, errors", str(len(found.errors)), "0", not found.errors),
        Row(
            f"{name}, longest Redis list",
            str(found.most_bells),
            f"<= {MOST_BELLS}",
            found.most_bells <= MOST_BELLS,
        ),
        Row(
            f"{name}, slowest of {SWEEPS} passes of the sweeper",
            f"{1e3 * longest:.0f} ms",
            f"<= {1e3 * SWEEP_SECONDS:.0f} ms",
            longest <= SWEEP_SECONDS,
        ),
        Row(
            f"{name}, pages of 100",
            f"p99 {1e3 * p99:.0f} ms",
            f"<= {1e3 * PAGE_P99:.0f} ms",
            p99 <= PAGE_P99,
        ),
        Row(f"{name}, taken back", str(back), str(found.requests), back == found.requests),
        Row(
            f"{name}, in a terminal state after {found.seconds:.0f} s with one worker",
            said,
            str(found.requests),
            ended == found.requests,
        ),
    ]


if __name__ == "__main__":
    main()
