"""Reading the header of a large model: seconds and memory, for a file that is all holes.

One file of 5 GiB with a hundred tensors, one of as many bytes with as many tensors as are taken.
The tensors have no blocks on the disk, so whoever read them would be seen by time and memory. Each
is read in a process of its own; growth is its high-water mark less what was resident before.

    python -m benchmarks.headers [--gib 5]
"""

from __future__ import annotations

import json
import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import psutil

from benchmarks.hardware import parser
from benchmarks.importance import high_water
from benchmarks.tables import Row, median, write
from core.header import MAX_TENSORS, read_header

ROUNDS = 5
FEW = 100
MOST_SECONDS = 1.0
MOST_GROWTH = 50 * 2**20


def main() -> None:
    """Measure and write the table."""
    arguments = parser(__doc__)
    arguments.add_argument("--gib", type=int, default=5)
    options = arguments.parse_args()
    rows, raw = [], {}
    with tempfile.TemporaryDirectory() as name:
        for count in (FEW, MAX_TENSORS):
            file = _sparse(Path(name) / f"{count}.safetensors", options.gib * 2**30, count)
            found = [_in_a_process(file) for _ in range(ROUNDS)]
            seconds, growth = median([each[0] for each in found]), max(each[1] for each in found)
            what = f"{options.gib} GiB, {count} tensors"
            rows += [
                Row(
                    f"{what}, time",
                    f"{1e3 * seconds:.1f} ms",
                    f"<= {1e3 * MOST_SECONDS:.0f} ms",
                    seconds <= MOST_SECONDS,
                ),
                Row(
                    f"{what}, growth of memory",
                    f"{growth / 2**20:.1f} MiB",
                    f"<= {MOST_GROWTH >> 20} MiB",
                    growth <= MOST_GROWTH,
                ),
            ]
            raw[what] = found
    write(
        "headers",
        "Headers of large models",
        "python -m benchmarks.headers",
        [f"Sparse files, read by `core.header.read_header`; median of {ROUNDS}, largest growth."],
        rows,
        raw,
    )


def _sparse(path: Path, size: int, count: int) -> Path:
    """Write a header of ``count`` tensors over ``size`` bytes that are never written."""
    each = size // count // 4 * 4
    header = json.dumps(
        {
            f"layers.{number}.weight": {
                "dtype": "F32",
                "shape": [each // 4],
                "data_offsets": [number * each, (number + 1) * each],
            }
            for number in range(count)
        }
    ).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + count * each)
    return path


def _in_a_process(path: Path) -> tuple[float, int]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_read, path).result()


def _read(path: Path) -> tuple[float, int]:
    before = psutil.Process().memory_info().rss
    begun = time.perf_counter()
    read_header(path)
    seconds = time.perf_counter() - begun
    return seconds, max(0, high_water() - before)


if __name__ == "__main__":
    main()
