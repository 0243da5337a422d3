"""Good files with random damage: no reader crashes, ours takes none that the library refuses.

A crash of a library would end the whole process, which is what this looks for, too. A few hundred
files every day; ``make slow`` has 20 000. The seed of a file is in the name of the failing test.
"""

from __future__ import annotations

import io
import random
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors
import torch
from PIL import Image
from safetensors.torch import load_file, save

from core import images
from core.convert import convert
from core.errors import InvalidInput
from core.header import read_header
from core.ingest import ingest
from tests.worlds import png

from . import checkpoints as made

EVERYDAY, FULL = 60, 5_000
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


def cases() -> list[object]:
    return [
        pytest.param(
            name,
            start,
            id=f"{name}-{start}",
            marks=[pytest.mark.slow] if start >= EVERYDAY else [],
        )
        for name in READERS
        for start in range(0, FULL, BATCH)
    ]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "start"), cases())
def test_damaged_files(tmp_path: Path, name: str, start: int) -> None:
    taken = 0
    for seed in range(start, start + BATCH):
        folder = tmp_path / str(seed)
        folder.mkdir()
        with suppress(InvalidInput):
            READERS[name](random.Random(f"{name}-{seed}"), folder / "file")
            taken += 1
    assert taken < BATCH, "nothing was damaged"
