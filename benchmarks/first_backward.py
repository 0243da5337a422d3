"""From POST to the first backward pass of the unlearner: embedded service, spare runner ready.

Everything goes through the public API of the embedded service. Its runners are the product's own,
wrapped so that they note on the monotonic clock, which all processes share, when the order came,
when the phase ``unlearning`` began and when ``torch.autograd`` was first asked for a gradient: the
API itself shows progress with a delay of up to half a second. A spare runner counts as ready when
its process has used no processor time for a second.

    python -m benchmarks.first_backward
"""

from __future__ import annotations

import json
import secrets
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.digits import Registered, await_prepared, register
from benchmarks.hardware import parser
from benchmarks.launch import Place, Running, embedded
from benchmarks.tables import Row, median, write

REPETITIONS = 5
NUM_FORGOTTEN = 20
ALLOWED_SECONDS = 1.0
METHODS = ("fine_tune", "ssd")
QUIET_SECONDS = 1.0
PATIENCE_SECONDS = 120.0


def main() -> None:
    """Measure and write the table."""
    parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        place = Place(folder / "service")
        with embedded(place, "benchmarks.stamped.serve") as running:
            registered = register(running.service, folder)
            found = {
                method: [
                    _once(running, place, registered, method, turn) for turn in range(REPETITIONS)
                ]
                for method in METHODS
            }
    write(
        "first_backward",
        "From POST to the first backward pass",
        "python -m benchmarks.first_backward",
        [
            f"Digits, {NUM_FORGOTTEN} records per request, {REPETITIONS} requests per unlearner, "
            "one after the other, each once the model is prepared and the spare runner is ready. "
            "The end is the moment at which `torch.autograd` is first asked for a gradient, "
            "noted by the runner itself.",
        ],
        [row for method, parts in found.items() for row in _rows(method, parts)],
        found,
    )


def _rows(method: str, parts: list[dict[str, float]]) -> list[Row]:
    total = [sum(part.values()) for part in parts]
    rows = [
        Row(
            f"{method}: POST to first backward",
            f"median {median(total):.2f} s, max {max(total):.2f} s",
            f"<= {ALLOWED_SECONDS:g} s",
            median(total) <= ALLOWED_SECONDS,
        )
    ]
    for name in parts[0]:
        times = [part[name] for part in parts]
        rows.append(
            Row(f"{method}: {name}", f"median {median(times):.3f} s, max {max(times):.3f} s")
        )
    return rows


def _once(
    running: Running, place: Place, registered: Registered, method: str, turn: int
) -> dict[str, float]:
    """Send one request and return where its time went, in order."""
    first = (turn + METHODS.index(method) * REPETITIONS) * NUM_FORGOTTEN
    body = {
        "model": registered.model,
        "forget": {
            "type": "record_ids",
            "record_ids": registered.record_ids[first : first + NUM_FORGOTTEN],
        },
        "policy": "standard",
        "unlearner": {"name": method},
    }
    await_prepared(running.service, registered.model)
    _await_spare(running)
    stamps = place.folder / "stamps.jsonl"
    stamps.unlink(missing_ok=True)
    start = time.monotonic()
    request = running.service.forget(secrets.token_hex(8), body)
    answered = time.monotonic()
    for _ in running.service.follow(request["job_id"], interval=0.5):
        pass
    if not stamps.exists():
        raise RuntimeError(json.dumps(running.service.get(f"/jobs/{request['job_id']}")))
    seen: dict[str, Any] = json.loads(stamps.read_text().splitlines()[0])
    return {
        "POST to its answer": answered - start,
        "answer to the runner's order (ring, claim, hand over)": seen["order"] - answered,
        "order to the rung (read model and data)": seen["unlearning"] - seen["order"],
        "rung to the first backward pass": seen["backward"] - seen["unlearning"],
    }


def _await_spare(running: Running) -> None:
    """Wait until one runner is there and waits for its order."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    service = psutil.Process(running.process.pid)
    before: dict[int, float] = {}
    while time.monotonic() < deadline:
        try:
            used = {child.pid: sum(child.cpu_times()[:2]) for child in service.children()}
        except psutil.NoSuchProcess:
            used = {}  # one is just ending: not quiet yet
        if len(used) == 1 and used == before and min(used.values()) > QUIET_SECONDS:
            return
        before = used
        time.sleep(QUIET_SECONDS)
    raise RuntimeError("no spare runner became ready")


if __name__ == "__main__":
    main()
