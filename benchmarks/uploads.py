"""Raw and resumable uploads against the same machine's copy-and-hash rate, memory, and kills.

The API runs alone, because the file only looks like parquet: the runner would refuse it later.
The client is a process of its own that sends the file with ``sendfile``. Copy-and-hash reads the
same file in chunks of 1 MiB, hashes and writes them, and flushes at the end, as the API does.
Rounds alternate. Meanwhile ``/healthz`` is asked 20 times a second, and each call counts from the
moment it was due. A resumable upload is one PATCH; three of them at once are counted together. For
the kills the API is killed with SIGKILL in the middle of a PATCH and started again, ten times; what
had to be sent again is what the ledger did not hold. Everything is removed afterwards.

    python -m benchmarks.uploads [--mib 1024] [--rounds 3]
"""

from __future__ import annotations

import base64
import hashlib
import json
import multiprocessing
import os
import socket
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from app.api.appending import CHECKPOINT_BYTES
from benchmarks.hardware import parser
from benchmarks.launch import Place, Running, api_alone, embedded
from benchmarks.meanwhile import repeated
from benchmarks.tables import Row, median, quantile, write

ROUNDS = 3
PARALLEL = 3
KILLS = 10
MIB = 2**20
MAGIC = b"PAR1"
ALLOWED_GROWTH = 64 * MIB
HEALTH_P99 = 0.100
HEALTH_EVERY = 0.05


@dataclass(frozen=True)
class Watched:
    """What was seen of the API while files were sent to it."""

    growth: int
    """Of its resident memory, in bytes."""
    health: list[float]
    """Seconds until each answer of ``/healthz``."""


def main() -> None:
    """Measure and write the table."""
    arguments = parser(__doc__)
    arguments.add_argument("--mib", type=int, default=1024, help="size of the large file")
    arguments.add_argument("--rounds", type=int, default=ROUNDS)
    options = arguments.parse_args()
    copying: list[float] = []
    sending: list[float] = []
    seen: dict[str, list[Watched]] = {}
    pieces: dict[int, list[float]] = {1: [], PARALLEL: []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = options.mib * MIB
        most = {"LETHE_MAX_DATASET_BYTES": str(size), "LETHE_MAX_BYTES_IN_FLIGHT": str(8 * size)}
        place = Place(folder / "service", settings=most)
        with embedded(place):
            pass
        large = _file(folder / "large", options.mib)
        small = _file(folder / "small", options.mib // 4)
        with api_alone(place) as running:
            seen[f"{options.mib // 4} MiB"] = [_raw(running, small)[1]]
        for _ in range(options.rounds):
            copying.append(_copy_and_hash(large, folder / "copy"))
            with api_alone(place) as running:
                seconds, watched = _raw(running, large)
            sending.append(seconds)
            seen.setdefault(f"{options.mib} MiB", []).append(watched)
            for streams, found in pieces.items():
                with api_alone(place) as running:
                    seconds, watched = _resumable(running, large, streams)
                found.append(seconds)
                seen.setdefault(f"{streams} x {options.mib} MiB resumable", []).append(watched)
        again = _killed(place, large)
    write(
        "uploads",
        f"Uploads of {options.mib} MiB",
        f"python -m benchmarks.uploads --mib {options.mib} --rounds {options.rounds}",
        [
            "POST /datasets with `Content-Type: application/octet-stream` over loopback, until "
            "the 201; compared with reading, hashing, writing and flushing the same file in one "
            "thread. Resumable: POST /uploads and one PATCH, until its 204. "
            f"Alternating rounds: {options.rounds}, medians. Growth is the most that the API "
            "process had resident during the upload less what it had before, each time in a fresh "
            "process.",
        ],
        _rows(options.mib, copying, sending, seen)
        + _resumable_rows(options.mib, copying, pieces, again),
        {
            "copy_seconds": copying,
            "upload_seconds": sending,
            "resumable_seconds": {str(streams): found for streams, found in pieces.items()},
            "sent_again_bytes": again,
            "growth_bytes": {
                name: max(each.growth for each in found) for name, found in seen.items()
            },
            "health_seconds": {
                name: [seconds for each in found for seconds in each.health]
                for name, found in seen.items()
            },
        },
    )


def _rows(
    mib: int, copying: list[float], sending: list[float], seen: dict[str, list[Watched]]
) -> list[Row]:
    size = mib * MIB / 1e6
    copy, upload = size / median(copying), size / median(sending)
    share = median([a / b for a, b in zip(copying, sending, strict=True)])
    rows = [
        Row("copy and hash", f"{copy:.0f} MB/s"),
        Row(
            "upload",
            f"{upload:.0f} MB/s, {100 * share:.0f} % of copy and hash",
            ">= 200 MB/s or 80 %",
            upload >= 200 or share >= 0.8,
        ),
    ]
    for name, found in seen.items():
        grown = max(each.growth for each in found)
        answers = [seconds for each in found for seconds in each.health]
        p99 = quantile(answers, 0.99)
        rows += [
            Row(
                f"growth of the API's memory, {name}",
                f"{grown / MIB:.1f} MiB",
                "<= 64 MiB",
                grown <= ALLOWED_GROWTH,
            ),
            Row(
                f"`/healthz` meanwhile, {name} ({len(answers)})",
                f"p99 {1e3 * p99:.1f} ms",
                f"<= {1e3 * HEALTH_P99:.0f} ms",
                p99 <= HEALTH_P99,
            ),
        ]
    return rows


def _file(path: Path, mib: int) -> Path:
    """Write incompressible bytes that begin and end like parquet."""
    block = os.urandom(MIB)
    with path.open("wb") as file:
        for number in range(mib):
            file.write(number.to_bytes(8, "little") + block[8:])
        file.seek(0)
        file.write(MAGIC)
        file.seek(-len(MAGIC), os.SEEK_END)
        file.write(MAGIC)
        file.flush()
        os.fsync(file.fileno())
    return path


def _copy_and_hash(source: Path, target: Path) -> float:
    start = time.perf_counter()
    digest = hashlib.sha256()
    with source.open("rb") as reading, target.open("wb") as writing:
        while chunk := reading.read(MIB):
            digest.update(chunk)
            writing.write(chunk)
        writing.flush()
        os.fsync(writing.fileno())
    seconds = time.perf_counter() - start
    target.unlink()
    return seconds


def _resumable_rows(
    mib: int, copying: list[float], pieces: dict[int, list[float]], again: list[int]
) -> list[Row]:
    rows = []
    for streams, found in pieces.items():
        rate = streams * mib * MIB / 1e6 / median(found)
        share = median([streams * a / b for a, b in zip(copying, found, strict=True)])
        rows.append(
            Row(
                f"{streams} resumable at once",
                f"{rate:.0f} MB/s together, {100 * share:.0f} % of copy and hash",
                ">= 200 MB/s or 80 %",
                rate >= 200 or share >= 0.8,
            )
        )
    shown = ", ".join(f"{count / MIB:.1f} MiB" for count in again)
    most = 2 * CHECKPOINT_BYTES
    rows.append(
        Row(
            f"sent again after each of {len(again)} kills; the digest is right",
            shown,
            f"<= {most / MIB:.0f} MiB",
            all(count <= most for count in again),
        )
    )
    return rows


def _resumable(running: Running, file: Path, streams: int) -> tuple[float, Watched]:
    """Upload as so many uploads at once; return seconds and what was seen, then delete them."""
    made = [_begin(running, file) for _ in range(streams)]
    spans: list[tuple[float, float]] = []

    def send(pool: ProcessPoolExecutor) -> None:
        port, key = running.port, running.service.key
        sent = [pool.submit(_patch, port, key, path, file, 0, None) for path in made]
        spans.extend(each.result() for each in sent)

    watched = _watched(running, streams, send)
    # One clock for all processes of the machine.
    seconds = max(end for _, end in spans) - min(start for start, _ in spans)
    for path in made:
        headers = {"Tus-Resumable": "1.0.0"}
        running.service.http.delete(path, headers=headers).raise_for_status()
    return seconds, watched


def _killed(place: Place, file: Path) -> list[int]:
    """Kill the API in the middle of an upload, and go on; return what had to be sent again."""
    size = file.stat().st_size
    again: list[int] = []
    path, reached = "", 0
    for number in range(KILLS + 1):
        with api_alone(place) as running:
            path = path or _begin(running, file)
            answer = running.service.http.head(path, headers={"Tus-Resumable": "1.0.0"})
            offset = int(answer.headers["upload-offset"])
            if number:
                again.append(reached - offset)
            reached = size * (number + 1) // (KILLS + 1)
            stop_at = None if number == KILLS else reached
            _patch(running.port, running.service.key, path, file, offset, stop_at)
            if stop_at is not None:
                running.process.kill()
                running.process.wait()
                continue
            with file.open("rb") as reading:
                digest = hashlib.file_digest(reading, "sha256").hexdigest()
            found = running.service.http.get(path).json()
            if found["digest"] != f"sha256:{digest}":
                raise RuntimeError(str(found))
            running.service.http.delete(path, headers={"Tus-Resumable": "1.0.0"})
    return again


def _begin(running: Running, file: Path) -> str:
    headers = {"Tus-Resumable": "1.0.0", "Upload-Length": str(file.stat().st_size)}
    answer = running.service.http.post("/uploads", headers=headers)
    answer.raise_for_status()
    return str(answer.headers["location"])


def _patch(
    port: int, key: str, path: str, file: Path, offset: int, stop_at: int | None
) -> tuple[float, float]:
    """Send the rest of the file; return when it began and ended.

    With ``stop_at`` only the bytes before it are sent, and the call is left unfinished.
    """
    start = time.perf_counter()
    size = file.stat().st_size
    head = (
        f"PATCH {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
        f"Authorization: Bearer {key}\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: {offset}\r\n"
        "Content-Type: application/offset+octet-stream\r\n"
        f"Content-Length: {size - offset}\r\n\r\n"
    )
    connection = socket.create_connection(("127.0.0.1", port))
    with file.open("rb") as body:
        connection.sendall(head.encode())
        connection.sendfile(body, offset, (stop_at or size) - offset)
    if stop_at is not None:
        _unfinished.append(connection)
        return start, time.perf_counter()
    with connection:
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    if b" 204 " not in answer.split(b"\r\n", 1)[0]:
        raise RuntimeError(answer.decode(errors="replace"))
    return start, time.perf_counter()


_unfinished: list[socket.socket] = []
"""Kept open, so that the service sees a call that goes on until it is killed."""


def _raw(running: Running, file: Path) -> tuple[float, Watched]:
    """Upload once; return seconds and what was seen, then delete the dataset."""
    sent: list[tuple[float, str]] = []

    def send(pool: ProcessPoolExecutor) -> None:
        sent.append(pool.submit(_send, running.port, running.service.key, file).result())

    watched = _watched(running, 1, send)
    seconds, created = sent[0]
    running.service.http.delete(f"/datasets/{created}").raise_for_status()
    return seconds, watched


def _watched(
    running: Running, processes: int, send: Callable[[ProcessPoolExecutor], None]
) -> Watched:
    """Run ``send``; return what was seen of the API meanwhile."""
    process = psutil.Process(running.process.pid)
    before = process.memory_info().rss
    peaks, health = [before], list[float]()

    def watch(_: float) -> None:
        peaks.append(process.memory_info().rss)

    def ask(due: float) -> None:
        client.get("/healthz").raise_for_status()
        health.append(time.perf_counter() - due)

    context = multiprocessing.get_context("spawn")
    with (
        repeated(watch, every=0.02),
        httpx.Client(base_url=f"http://127.0.0.1:{running.port}", timeout=60) as client,
        ProcessPoolExecutor(processes, mp_context=context) as pool,
    ):
        # Started before anything is sent: a process imports for seconds.
        for ready in [pool.submit(time.sleep, 0.1) for _ in range(2 * processes)]:
            ready.result()
        with repeated(ask, HEALTH_EVERY):
            send(pool)
    return Watched(max(peaks) - before, health)


def _send(port: int, key: str, file: Path) -> tuple[float, str]:
    """Post the file raw; return the seconds until the answer and the dataset's id."""
    metadata = base64.b64encode(json.dumps({"name": "upload benchmark"}).encode()).decode()
    head = (
        "POST /datasets HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
        f"Authorization: Bearer {key}\r\nX-Dataset-Metadata: {metadata}\r\n"
        "Content-Type: application/octet-stream\r\n"
        f"Content-Length: {file.stat().st_size}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", port)) as connection, file.open("rb") as body:
        start = time.perf_counter()
        connection.sendall(head.encode())
        connection.sendfile(body)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
        seconds = time.perf_counter() - start
    status, _, content = answer.partition(b"\r\n\r\n")
    if b" 201 " not in status.split(b"\r\n", 1)[0]:
        raise RuntimeError(answer.decode(errors="replace"))
    return seconds, str(json.loads(content)["id"])


if __name__ == "__main__":
    main()
