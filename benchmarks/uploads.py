"""One raw upload against the same machine's copy-and-hash rate, and what it costs in memory.

The API runs alone, because the file only looks like parquet: the runner would refuse it later.
The client is a process of its own that sends the file with ``sendfile``. Copy-and-hash reads the
same file in chunks of 1 MiB, hashes and writes them, and flushes at the end, as the API does.
Rounds alternate. Everything is removed afterwards.

    python -m benchmarks.uploads [--mib 1024]
"""

from __future__ import annotations

import base64
import hashlib
import json
import multiprocessing
import os
import socket
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import psutil

from benchmarks.hardware import parser
from benchmarks.launch import Place, Running, api_alone, embedded
from benchmarks.tables import Row, median, write

ROUNDS = 3
MIB = 2**20
MAGIC = b"PAR1"
ALLOWED_GROWTH = 64 * MIB


def main() -> None:
    """Measure and write the table."""
    arguments = parser(__doc__)
    arguments.add_argument("--mib", type=int, default=1024, help="size of the large file")
    options = arguments.parse_args()
    copying: list[float] = []
    sending: list[float] = []
    growth: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        place = Place(folder / "service")
        with embedded(place):
            pass
        large = _file(folder / "large", options.mib)
        small = _file(folder / "small", options.mib // 4)
        with api_alone(place) as running:
            growth[f"{options.mib // 4} MiB"] = _grown(running, small)[1]
        for _ in range(ROUNDS):
            copying.append(_copy_and_hash(large, folder / "copy"))
            with api_alone(place) as running:
                seconds, grown = _grown(running, large)
            sending.append(seconds)
            growth[f"{options.mib} MiB"] = max(growth.get(f"{options.mib} MiB", 0), grown)
    write(
        "uploads",
        f"One raw upload of {options.mib} MiB",
        "python -m benchmarks.uploads",
        [
            "POST /datasets with `Content-Type: application/octet-stream` over loopback, until "
            "the 201; compared with reading, hashing, writing and flushing the same file in one "
            f"thread. {ROUNDS} alternating rounds, medians. Growth is the most that the API "
            "process had resident during the upload less what it had before, each time in a "
            "fresh process.",
        ],
        _rows(options.mib, copying, sending, growth),
        {"copy_seconds": copying, "upload_seconds": sending, "growth_bytes": growth},
    )


def _rows(
    mib: int, copying: list[float], sending: list[float], growth: dict[str, int]
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
    for name, grown in growth.items():
        rows.append(
            Row(
                f"growth of the API's memory, {name}",
                f"{grown / MIB:.1f} MiB",
                "<= 64 MiB",
                grown <= ALLOWED_GROWTH,
            )
        )
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


def _grown(running: Running, file: Path) -> tuple[float, int]:
    """Upload once; return seconds and the growth of resident memory, then delete the dataset."""
    process = psutil.Process(running.process.pid)
    before = process.memory_info().rss
    done = threading.Event()
    peaks = [before]

    def watch() -> None:
        while not done.wait(0.02):
            peaks.append(process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            seconds, created = pool.submit(_send, running.port, running.service.key, file).result()
    finally:
        done.set()
        watcher.join()
    running.service.http.delete(f"/datasets/{created}").raise_for_status()
    return seconds, max(peaks) - before


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
