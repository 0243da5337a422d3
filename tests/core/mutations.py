"""``python -m tests.core.mutations --files 5000``: good files with random damage, each read.

No reader crashes, and ours takes none that the library refuses. A crash of a library would end the
whole process, so batches are read in a process of their own. A run in the full number writes
``benchmarks/results/mutations.json`` and its page; ``--write`` has a shorter one do so.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import random
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors
import torch
from PIL import Image
from safetensors.torch import load_file, save

from benchmarks import tables
from core import images
from core.convert import convert
from core.errors import InvalidInput
from core.header import read_header
from core.ingest import ingest
from tests.chaos.full import commit
from tests.worlds import png

from . import checkpoints as made

FULL = 5_000
"""Files of each kind."""
BATCH = 20
INTERESTING = (
    b"\0",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\xff\xff\xff\xff",
    b"\0\0\0\x80",
    b'"',
    b"}",
    b".",
)


def damaged(data: bytes, draw: random.Random) -> bytes:
    """Change a few places of a file in the ways that files break, and some that attackers like."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 4, 8))):
        at = draw.randrange(len(changed) + 1)
        match draw.randrange(7):
            case 0 if at < len(changed):
                changed[at] ^= 1 << draw.randrange(8)
            case 1:
                piece = draw.choice(INTERESTING)
                changed[at : at + len(piece)] = piece
            case 2:
                del changed[at : at + draw.randrange(1, 16)]
            case 3:
                changed[at:at] = changed[at : at + draw.randrange(1, 32)]
            case 4:
                changed[at:at] = draw.randbytes(draw.randrange(1, 8))
            case 5:
                other = draw.randrange(len(changed) + 1)
                changed[at : at + 8] = changed[other : other + 8]
            case 6 if draw.randrange(4) == 0:
                del changed[at:]
        if not changed:
            return b""
    return bytes(changed)


def safetensors_file(draw: random.Random, path: Path) -> None:
    good = save({"a": torch.ones(3, 2), "b": torch.zeros(4, dtype=torch.int64)}, {"k": "v"})
    path.write_bytes(damaged(good, draw))
    header = read_header(path)
    with safetensors.safe_open(path, framework="pt") as file:
        assert set(file.keys()) == set(header.tensors)
        for name, info in header.tensors.items():
            assert tuple(file.get_tensor(name).shape) == info.shape


def checkpoint(draw: random.Random, path: Path) -> None:
    good = made.saved({"state_dict": made.state(), "epoch": 3})
    path.write_bytes(rezipped(good, draw) if draw.random() < 0.8 else damaged(good, draw))
    out = path.parent / "out"
    out.mkdir(exist_ok=True)
    result = convert(out=out, source=path, architecture=made.ARCHITECTURE, max_parameters=1_000_000)
    found = torch.load(path, weights_only=True, map_location="cpu")
    for name in result["unwrapped"]:
        found = found[name]
    ours = load_file(out / result["weights"])
    for name, tensor in ours.items():
        theirs = found[result["prefix"] + name]
        assert tensor.numpy().tobytes() == theirs.detach().contiguous().numpy().tobytes()


def rezipped(data: bytes, draw: random.Random) -> bytes:
    """Damage what is inside and make a sound archive of it, so that it reaches the unpickler."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
        members = {info.filename: old.read(info) for info in old.infolist()}
        victim = draw.choice([*members, *[name for name in members if name.endswith(".pkl")] * 9])
        for name, content in members.items():
            new.writestr(name, damaged(content, draw) if name == victim else content)
    return buffer.getvalue()


def parquet(draw: random.Random, path: Path) -> None:
    table = pa.table(
        {
            "id": ["a", "b", "c"],
            "label": [0, 1, 0],
            "features": [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]],
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    path.write_bytes(damaged(buffer.getvalue(), draw))
    (path.parent / "out").mkdir(exist_ok=True)
    result = ingest(source=path, out=path.parent / "out", max_records=100)
    assert pq.read_table(path).num_rows == result["num_train"] + result["num_holdout"]


def picture(draw: random.Random, path: Path) -> None:
    pixels = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
    data = damaged(png(pixels), draw)
    path.write_bytes(data)
    ours = images.read(data)
    with Image.open(path) as theirs:
        theirs.load()
        assert theirs.size == ours.size


READERS: dict[str, Callable[[random.Random, Path], None]] = {
    "safetensors": safetensors_file,
    "checkpoint": checkpoint,
    "parquet": parquet,
    "png": picture,
}


@dataclass
class Tally:
    """What became of damaged files."""

    files: int = 0
    taken: int = 0
    """Read by ours, and the same by the library."""
    refused: int = 0
    """Answered with ``InvalidInput``."""
    broken: list[str] = field(default_factory=list)
    """Anything else, each with its seed."""

    def add(self, more: Tally) -> None:
        """Count what another tally has counted."""
        self.files += more.files
        self.taken += more.taken
        self.refused += more.refused
        self.broken += more.broken


def try_batch(name: str, start: int, folder: Path) -> Tally:
    """Read the damaged files of the seeds from ``start`` on.

    Args:
        name: of the reader.
        start: first of ``BATCH`` seeds.
        folder: for the files.
    """
    tally = Tally()
    for seed in range(start, start + BATCH):
        home = folder / f"{name}-{seed}"
        home.mkdir()
        tally.files += 1
        try:
            READERS[name](random.Random(f"{name}-{seed}"), home / "file")
        except InvalidInput:
            tally.refused += 1
        except Exception:  # noqa: BLE001  # whatever it is, it is what was looked for
            tally.broken.append(f"{name}-{seed}: {traceback.format_exc(limit=-3)}")
        else:
            tally.taken += 1
    return tally


def _try_apart(name: str, start: int) -> Tally:
    """Read a batch in a process of its own, whose end would tell of a crash."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        return try_batch(name, start, Path(folder))


def try_all(
    batches: Iterable[tuple[str, int]], work: Callable[[str, int], Tally] = _try_apart
) -> dict[str, Tally]:
    """Read batches one after the other; a crash ends its batch and is counted as broken.

    Args:
        batches: name of the reader and first seed of each.
        work: reads one, in another process.

    Returns:
        Name of the reader -> its tally.
    """
    found: dict[str, Tally] = {}
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(1, spawn)
    for name, start in batches:
        tally = found.setdefault(name, Tally())
        try:
            tally.add(pool.submit(work, name, start).result())
        except BrokenProcessPool:
            tally.add(Tally(BATCH, broken=[f"{name}-{start} to {start + BATCH - 1}: crashed"]))
            pool.shutdown()
            pool = ProcessPoolExecutor(1, spawn)
    pool.shutdown()
    return found


def main() -> int:
    """Damage and read files; the status says whether anything broke."""
    parser = argparse.ArgumentParser(prog="python -m tests.core.mutations", description=__doc__)
    parser.add_argument("--files", type=int, default=FULL, help="of each kind, in twenties")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--write", action="store_true", help="write the figures of a short run")
    given = parser.parse_args()
    started, at, tested = time.monotonic(), datetime.now(UTC), commit()
    last = given.first + given.files
    found = try_all((name, start) for name in READERS for start in range(given.first, last, BATCH))
    for name, tally in found.items():
        print(f"{name}: {tally.files} files, {tally.taken} taken, {tally.refused} refused")
        print(*tally.broken, sep="\n", end="" if not tally.broken else "\n")
    if given.write or given.files >= FULL:
        _write(
            found,
            {
                "first_seed": given.first,
                "seconds": round(time.monotonic() - started),
                "commit": tested,
                "at": at.isoformat(timespec="seconds"),
            },
        )
    return int(any(tally.broken for tally in found.values()))


def _write(found: dict[str, Tally], about: dict[str, int | str]) -> None:
    rows = []
    for name, tally in found.items():
        rows += [
            tables.Row(f"{name}: files", f"{tally.files}", f">= {FULL}", tally.files >= FULL),
            tables.Row(f"{name}: taken, refused", f"{tally.taken}, {tally.refused}"),
            tables.Row(f"{name}: broken", f"{len(tally.broken)}", "0", not tally.broken),
        ]
    tables.write(
        "mutations",
        "Damaged files",
        "make mutations",
        [
            "Good files with random damage. Taken: read by ours, and as the library reads them. "
            "Refused: with an error that says so. Broken: a crash, another error, or a reading "
            "that differs from the library's.",
            f"{about['at']}, commit {about['commit']}, seeds from {about['first_seed']} on, "
            f"{about['seconds']} s.",
        ],
        rows,
        {**about, "readers": {name: asdict(tally) for name, tally in found.items()}},
    )


if __name__ == "__main__":
    sys.exit(main())
