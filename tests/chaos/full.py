"""``make chaos-full``: every fault in its full number, cell by cell, hours in all.

A cell is one test on one database. Each writes one file under ``benchmarks/results/chaos``; what
has passed there is not run again, so a run that was stopped goes on where it was. ``--list`` says
what is missing, ``--only T2`` runs some, ``--few`` strikes a few times and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from tests.chaos.sizes import FULL

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks/results/chaos"
KILLS = "tests/chaos/test_kills.py"
OUTAGES = "tests/chaos/test_outages.py"
FAILPOINTS = "tests/chaos/test_failpoints.py"
MESSAGES = "tests/chaos/test_messages.py"
DRAINS = "tests/chaos/test_drain.py"
CALLS = "tests/store/test_nth_call.py::test_a_request_survives_any_failed_call"
BLOBS = "tests/worker/test_failpoints.py::test_any_failed_call_to_the_blobs_is_recovered_from"
ORDERS = "tests/store/test_interleavings.py"
BOTH = ("sqlite", "postgres")
SEEDS = 20
"""Of the simulation: 5 000 schedules each."""

CELLS: dict[str, list[str]] = {
    "T1_sqlite": [f"{KILLS}::test_the_embedded_service_killed_whole"],
    "T1_postgres": [f"{KILLS}::test_the_celery_worker_killed"],
    **{f"T2_{name}": [f"{FAILPOINTS}::test_a_death_at_every_place[{name}]"] for name in BOTH},
    **{f"T3_{name}": [f"{OUTAGES}::test_the_api_killed_in_bursts[{name}]"] for name in BOTH},
    "T4_postgres": [f"{OUTAGES}::test_the_broker_dies_forgets_and_falls_silent"],
    "T5_postgres": [f"{OUTAGES}::test_the_database_is_stopped_at_once"],
    **{f"T6_{name}": [f"{OUTAGES}::test_frozen_workers_are_fenced[{name}]"] for name in BOTH},
    "T7_sqlite": [f"{DRAINS}::test_the_embedded_service_gives_its_job_back"],
    "T7_postgres": [f"{DRAINS}::test_the_celery_worker_gives_its_job_back"],
    **{f"T8_{name}": [f"{MESSAGES}::test_no_message_has_an_effect[{name}]"] for name in BOTH},
    "T10_postgres": [f"{OUTAGES}::test_a_full_disk"],
    "T11_sqlite": [f"{CALLS}[sqlite]", BLOBS],
    "T11_postgres": [f"{CALLS}[postgres]"],
    **{f"T12_sqlite_{seed:02}": ["tests/store/test_simulation.py"] for seed in range(SEEDS)},
    **{f"T25_{name}": [ORDERS, "-k", name] for name in BOTH},
}


def main() -> None:
    """Run what is missing; exit with 1 if anything failed."""
    parser = argparse.ArgumentParser(prog="make chaos-full", description=__doc__)
    parser.add_argument("--list", action="store_true", help="only say what is missing")
    parser.add_argument("--few", action="store_true", help="a few strikes each, no files")
    parser.add_argument("--only", default="", help="names of cells begin with this")
    given = parser.parse_args()
    chosen = [cell for cell in CELLS if cell.startswith(given.only)]
    missing = [cell for cell in chosen if given.few or not has_passed(cell)]
    print(f"{len(chosen) - len(missing)} of {len(chosen)} cells are there; missing: {missing}")
    if given.list:
        return
    failed = [cell for cell in missing if not run(cell, few=given.few)]
    print(f"failed: {failed}")
    sys.exit(bool(failed))


def has_passed(cell: str) -> bool:
    """Whether a result of the cell is there, and is a good one."""
    path = RESULTS / f"{cell}.json"
    return path.exists() and json.loads(path.read_text())["passed"]


def run(cell: str, *, few: bool) -> bool:
    """Run one cell, and write down what came out."""
    print(f"{cell} ...", flush=True)
    environment = {**os.environ, FULL: "0" if few else "1"}
    if cell.startswith("T12"):
        environment["LETHE_CHAOS_SEED"] = cell[-2:]
    arguments = ["-m", "", "-s", "-q", "--timeout", "86400", *CELLS[cell]]
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments],
        cwd=ROOT,
        env=environment,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    seconds = time.monotonic() - started
    # A skip proves nothing.
    passed = done.returncode == 0 and re.search(r"\b[1-9][0-9]* passed", done.stdout) is not None
    print(f"{cell} {'passed' if passed else 'FAILED'} in {seconds:.0f} s", flush=True)
    if not passed:
        print(done.stdout[-4000:], flush=True)
    if not few:
        write(cell, passed, seconds, done.stdout)
    return passed


def write(cell: str, passed: bool, seconds: float, output: str) -> None:
    """Keep the result with what it was measured on."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    result = {
        "cell": cell,
        "passed": passed,
        "seconds": round(seconds, 1),
        "said": re.findall(r"^(?:seed |\d+ kills).*", output, re.MULTILINE),
        "summary": output.splitlines()[-1],
        "commit": commit.stdout.strip(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    (RESULTS / f"{cell}.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
