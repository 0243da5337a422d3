"""Latency of the API under load: 50 calls a second, 80 % reads, 50 connections; then its capacity.

The embedded service prepares a digits model first. It is stopped, and the API alone is measured on
the same database, so that nothing but the API answers and no job runs meanwhile. Calls arrive at
constant distance and latency counts from the moment a call was due (open loop). Capacity is
measured apart: every connection calls again as soon as it was answered. SQLite in a fresh folder;
PostgreSQL in a fresh database that is dropped afterwards, on the server named by ``--postgres``.

20 000 calls to a database are asked for; fewer can only show that there are errors.

    python -m benchmarks.service [--postgres URL] [--seconds 400]
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil

from benchmarks.digits import register
from benchmarks.hardware import parser
from benchmarks.launch import Place, api_alone, embedded
from benchmarks.load import Outcome, Plan, run
from benchmarks.postgres import SERVER, fresh_database, reachable
from benchmarks.tables import Row, quantile, write

WRITE_P99 = {"SQLite": 0.250, "PostgreSQL": 0.150}
READ_P99 = 0.050
CALLS = 20_000
CAPACITY_SECONDS = 8.0


@dataclass(frozen=True)
class Measured:
    """What one database was seen to do."""

    opened: Outcome
    closed: Outcome
    busy_seconds: float
    """Processor time of the API during the open loop."""


def main() -> None:
    """Measure both databases and write the table."""
    arguments = parser(__doc__)
    arguments.add_argument("--postgres", default=SERVER, help="URL of a server we may use")
    arguments.add_argument("--seconds", type=float, default=30.0)
    options = arguments.parse_args()
    outcomes: dict[str, Measured] = {}
    notes = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        outcomes["SQLite"] = _measure(Place(folder / "sqlite"), folder, options.seconds)
        if reachable(options.postgres):
            with fresh_database(options.postgres) as url:
                place = Place(folder / "postgresql", url)
                outcomes["PostgreSQL"] = _measure(place, folder, options.seconds)
        else:
            notes.append("PostgreSQL was not measured: no server answers at the address given.")
    rows = [row for name, found in outcomes.items() for row in _rows(name, found)]
    write(
        "service",
        "Latency of the API: 50 calls a second, 80 % reads, 50 connections",
        f"python -m benchmarks.service --seconds {options.seconds:g}",
        [
            "Writes are `POST /unlearn-requests` with five record ids of digits and an "
            "`Idempotency-Key`; reads are a request, its job, its model, and a page of 20 "
            "requests. One API process, no worker; the generator is a process of its own on the "
            "same machine. Open loop: latency counts from the moment a call was due. Capacity is "
            "a closed loop with the same calls over 50 connections.",
            *notes,
        ],
        rows,
        {name: asdict(found) for name, found in outcomes.items()},
    )


def _measure(place: Place, folder: Path, seconds: float) -> Measured:
    """Prepare a model, then send it an open and a closed loop."""
    scratch = folder / f"{place.folder.name}-data"
    scratch.mkdir()
    with embedded(place) as running:
        registered = register(running.service, scratch)
    with api_alone(place) as running:
        api = psutil.Process(running.process.pid)
        plan = Plan(
            port=running.port,
            key=running.service.key,
            model=registered.model,
            # Of half of them: the last ones that stay could not be forgotten.
            record_ids=registered.record_ids[: len(registered.record_ids) // 2],
            seconds=seconds,
        )
        run(replace(plan, seconds=3.0, seed=1))
        before = sum(api.cpu_times()[:2])
        opened = run(plan)
        busy = sum(api.cpu_times()[:2]) - before
        closed = run(replace(plan, seconds=CAPACITY_SECONDS, rate=None, seed=2))
    return Measured(opened, closed, busy)


def _rows(name: str, found: Measured) -> list[Row]:
    opened, closed = found.opened, found.closed
    rows = []
    for kind, times, asked in (
        ("writes", opened.writes, WRITE_P99[name]),
        ("reads", opened.reads, READ_P99),
    ):
        p50, p95, p99 = (1e3 * quantile(times, share) for share in (0.5, 0.95, 0.99))
        rows.append(
            Row(
                f"{name}, {kind} ({len(times)})",
                f"p50 {p50:.1f}, p95 {p95:.1f}, p99 {p99:.1f} ms",
                f"p99 <= {1e3 * asked:.0f} ms",
                p99 <= 1e3 * asked,
            )
        )
    calls = len(closed.reads) + len(closed.writes)
    sent = len(opened.reads) + len(opened.writes)
    cost = found.busy_seconds / sent
    late = 1e3 * quantile(opened.lateness, 0.99)
    return [
        *rows,
        Row(
            f"{name}, errors",
            f"{len(opened.errors)} in {sent}",
            f"0 in {CALLS}",
            False if opened.errors else (True if sent >= CALLS else None),
        ),
        Row(f"{name}, processor time of the API per call", f"{1e3 * cost:.1f} ms"),
        Row(f"{name}, how late the generator itself was", f"p99 {late:.1f} ms"),
        Row(
            f"{name}, capacity (errors {len(closed.errors)})",
            f"{calls / closed.seconds:.0f} calls/s, p99 of writes "
            f"{1e3 * quantile(closed.writes, 0.99):.0f} ms",
        ),
    ]


if __name__ == "__main__":
    main()
