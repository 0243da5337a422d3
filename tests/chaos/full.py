"""``make chaos-full``: every fault in its full number, cell by cell, hours in all.

A cell is one test on one database, done in portions of some minutes. Its file under
``benchmarks/results/chaos`` is written after each, so a run that was stopped goes on where it was;
a portion that failed is kept there too, and done again. ``--list`` says what is missing,
``--only T2`` runs some cells, ``--portion 2`` makes portions smaller for a slow machine,
``--minutes 30`` begins none after that time, and ``--few`` strikes a few times and writes nothing.
Most of the time is waiting, so ``--lane 1/3`` does every third portion from the second on, in a
clone of its own, and ``--join FOLDER`` adds what such a clone has run. ``--page`` only writes
anew what is told of all portions, in their files and in ``benchmarks/results/chaos.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from tests.chaos.page import added_up, page, summary
from tests.chaos.sizes import FIRST, MEASURED, STRIKES

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path("benchmarks/results/chaos")
PAGE = RESULTS.with_suffix(".md")
KILLS = "tests/chaos/test_kills.py"
OUTAGES = "tests/chaos/test_outages.py"
BROKER = "tests/chaos/test_broker.py::test_it_dies_forgets_and_falls_silent"
DISKS = "tests/chaos/test_full_disk.py::test_uploads_and_jobs_wait_for_room"
VOLUMES = "tests/chaos/test_full_disk.py::test_a_full_database_refuses_requests"
FAILPOINTS = "tests/chaos/test_failpoints.py::test_a_death_at_every_place"
MESSAGES = "tests/chaos/test_messages.py::test_no_message_has_an_effect"
DRAINS = "tests/chaos/test_drain.py"
TWO_WORKERS = "tests/chaos/test_two_workers.py"
CALLS = "tests/store/test_nth_call.py::test_a_request_survives_any_failed_call"
BLOBS = "tests/worker/test_failpoints.py::test_any_failed_call_to_the_blobs_is_recovered_from"
ORDERS = "tests/store/test_interleavings.py"
SIMULATION = "tests/store/test_simulation.py"
FOLDER = re.compile(r'(?<=")/[^"]*/(?=[^/"]+/[^/"]+\.py")')
"""Where a file lies on this machine, but for its last folder."""
PASSED = re.compile(r"^[1-9][0-9]* passed(?!.*skipped)", re.MULTILINE)
BOTH = ("sqlite", "postgres")

Json = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One test on one database.

    Args:
        tests: arguments of pytest.
        asked: strikes in all.
        portion: strikes of one run.
    """

    tests: tuple[str, ...]
    asked: int = 1
    portion: int = 1


CELLS: dict[str, Cell] = {
    "T1_sqlite": Cell((f"{KILLS}::test_the_embedded_service_killed",), 200, 10),
    "T1_postgres": Cell((f"{KILLS}::test_the_celery_worker_killed",), 200, 10),
    **{f"T2_{on}": Cell((f"{FAILPOINTS}[{on}]",), 250, 5) for on in BOTH},
    **{f"T3_{on}": Cell((f"{OUTAGES}::test_the_api_killed[{on}]",), 100, 10) for on in BOTH},
    "T4_postgres": Cell((BROKER,), 60, 6),
    "T5_postgres": Cell((f"{OUTAGES}::test_the_database_is_stopped_at_once",), 20, 5),
    **{f"T6_{on}": Cell((f"{OUTAGES}::test_frozen_workers[{on}]",), 50, 5) for on in BOTH},
    "T7_sqlite": Cell((f"{DRAINS}::test_the_embedded_service_gives_its_job_back",), 50, 5),
    "T7_postgres": Cell((f"{DRAINS}::test_the_celery_worker_gives_its_job_back",), 50, 5),
    **{f"T8_{on}": Cell((f"{MESSAGES}[{on}]",), 10, 2) for on in BOTH},
    **{f"T10_{on}": Cell((f"{DISKS}[{on}]",)) for on in BOTH},
    **{f"T10_volume_{on}": Cell((f"{VOLUMES}[{on}]",)) for on in BOTH},
    "F6_postgres": Cell((TWO_WORKERS,), 3),
    "T11_sqlite": Cell((f"{CALLS}[sqlite]", BLOBS)),
    "T11_postgres": Cell((f"{CALLS}[postgres]",)),
    "T12_sqlite": Cell((SIMULATION,), 100_000, 500),
    # SQLite has one writer at a time: nothing overlaps there.
    "T25_sqlite": Cell((ORDERS, "-k", "sqlite and not two_open_transactions_keep_the_promises")),
    "T25_postgres": Cell((ORDERS, "-k", "postgres and not sqlite")),
}


def main() -> None:
    """Run what is missing; exit with 1 if anything failed."""
    parser = argparse.ArgumentParser(prog="make chaos-full", description=__doc__)
    parser.add_argument("--list", action="store_true", help="only say what is missing")
    parser.add_argument("--few", action="store_true", help="a few strikes each, no files")
    parser.add_argument("--only", default="", help="names of cells begin with this")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin nothing later")
    parser.add_argument("--portion", type=int, help="strikes of one run, instead of the cell's own")
    parser.add_argument("--lane", default="0/1", help="share a cell among clones")
    parser.add_argument("--join", type=Path, nargs="+", help="clones whose portions are added")
    parser.add_argument("--page", action="store_true", help="only tell anew what was run")
    given = parser.parse_args()
    chosen = [name for name in CELLS if name.startswith(given.only)]
    if given.list:
        for name in chosen:
            print(f"{name:22}{done(name):>8} of {CELLS[name].asked}")
        return
    if given.join:
        for name in chosen:
            join(name, given.join)
        return
    if given.page:
        for name in filter(portions, chosen):
            write(name, portions(name))
        return
    until = time.monotonic() + 60 * given.minutes
    lane, lanes = map(int, given.lane.split("/"))
    act = partial(run_all, portion=given.portion, lane=lane, lanes=lanes)
    act = run_few if given.few else act
    failed = [name for name in chosen if not act(name, until)]
    missing = [name for name in chosen if not given.few and done(name) < CELLS[name].asked]
    print(f"failed: {failed}, missing: {missing}")
    sys.exit(bool(failed))


def done(name: str) -> int:
    """How many strikes of a cell were survived."""
    return sum(portion["strikes"] for portion in portions(name) if portion["passed"])


def portions(name: str, root: Path = ROOT) -> list[Json]:
    """What was run of a cell."""
    path = root / RESULTS / f"{name}.json"
    return json.loads(path.read_text())["portions"] if path.exists() else []


def join(name: str, clones: list[Path]) -> None:
    """Add the portions of a cell that clones have run, once each, in the order of time."""
    found = [portion for root in (ROOT, *clones) for portion in portions(name, root)]
    if found:
        once = {(portion["at"], portion["first"]): portion for portion in reversed(found)}
        write(name, [portion for _, portion in sorted(once.items())])


def run_all(name: str, until: float, portion: int | None, lane: int, lanes: int) -> bool:
    """Run the portions of a cell that are missing and fall to this lane, to the first that fails.

    Args:
        name: of the cell.
        until: begin none after this time of the monotonic clock.
        portion: strikes of one run, instead of the cell's own.
        lane: which of the lanes this is, from 0.
        lanes: how many share the cell.
    """
    cell = CELLS[name]
    size = portion or cell.portion
    for first in range(done(name) + lane * size, cell.asked, lanes * size):
        if time.monotonic() > until:
            break
        number = min(size, cell.asked - first)
        made = run(name, {STRIKES: str(number), FIRST: str(first)})
        write(name, [*portions(name), {"first": first, "strikes": number, **made}])
        if not made["passed"]:
            return False
    return True


def run_few(name: str, until: float) -> bool:
    """Run a cell in its short form."""
    return time.monotonic() > until or bool(run(name, {})["passed"])


def run(name: str, sizes: dict[str, str]) -> Json:
    """Run one portion; return what came out, with what it was measured on."""
    print(f"{name} {sizes} ...", flush=True)
    arguments = ["-m", "", "-s", "-q", "--timeout", "86400", *CELLS[name].tests]
    started, cpu = time.monotonic(), cpu_seconds()
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments],
        cwd=ROOT,
        env={**os.environ, **sizes},
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    seconds = time.monotonic() - started
    # A skip proves nothing.
    passed = ended.returncode == 0 and PASSED.search(ended.stdout) is not None
    counts = added_up(json.loads(said) for said in MEASURED.findall(ended.stdout))
    print(f"{'passed' if passed else 'FAILED'} in {seconds:.0f} s: {counts}", flush=True)
    if not passed:
        print(ended.stdout[-60_000:], flush=True)
    return {
        "passed": passed,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds() - cpu, 1),
        "counts": counts,
        "said": [] if passed else reasons(ended.stdout),
        "machine": machine(),
        "commit": commit(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def reasons(output: str) -> list[str]:
    """What pytest says of an error, or how its output ends where it says nothing."""
    lines = [*filter(None, FOLDER.sub("", output).splitlines())]
    return [line[:600] for line in lines if line.startswith("E ")][:8] or lines[-8:]


def cpu_seconds() -> float:
    """What the portions and their processes have used, but for runners whose worker was killed."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def commit() -> str:
    """What is being tested; results that were written before do not count."""
    git = partial(subprocess.check_output, cwd=ROOT, text=True)
    changed = git(["git", "status", "--porcelain", "--", ".", f":!{RESULTS.parent}"])
    return git(["git", "rev-parse", "--short", "HEAD"]).strip() + ("-dirty" if changed else "")


def machine() -> str:
    """What the portions run on."""
    return f"{platform.machine()}, {os.cpu_count()} cores"


def write(name: str, found: list[Json]) -> None:
    """Keep all portions, with what failed and their sum on top; write the page anew."""
    folder = ROOT / RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    result = told(name, found)
    (folder / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    cells = {each: portions(each, ROOT) for each in CELLS}
    summaries = [told(each, run) for each, run in cells.items() if run]
    missing = {each: CELLS[each].asked for each, run in cells.items() if not run}
    (ROOT / PAGE).write_text(page(summaries, missing))


def told(name: str, found: list[Json]) -> Json:
    """What came out of a cell; portions that do not say where they ran did so on this machine."""
    return summary(name, CELLS[name].asked, [{"machine": machine(), **each} for each in found])


if __name__ == "__main__":
    main()
