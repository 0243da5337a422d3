"""One safetensors file of several, as an index says where each tensor is; no tensor is understood.

The layout is that of the index files that transformers and huggingface_hub write.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NoReturn

from .errors import InvalidInput
from .header import TensorInfo, read_header

CHUNK_BYTES = 1 << 20
_ALIGNED = 8
_ORDER = ("I64", "F64", "F32", "I32", "BF16", "F16", "I16", "I8", "U8", "BOOL")
"""The largest first, so that every tensor is aligned; the order in which the library writes."""

Place = tuple[Path, int, TensorInfo]
"""The file that a tensor is in, where it begins there, and what it is."""


def merge(
    files: Mapping[str, Path],
    weight_map: Mapping[str, str],
    target: Path,
    *,
    total_size: int | None = None,
) -> str:
    """Write the tensors of all files into one, in constant memory; return its SHA-256 in hex.

    The result depends on the tensors alone, not on how they were spread.

    Args:
        files: name in the index -> where the file lies.
        weight_map: tensor -> name of the file that holds it.
        target: must not exist.
        total_size: bytes of all tensors; checked if given.

    Raises:
        InvalidInput: ``shards_mismatch`` if files and index disagree, or what ``read_header``
            raises.
    """
    if files.keys() != set(weight_map.values()):
        _refuse("the files are not those that the index names")
    places: dict[str, Place] = {}
    for name, path in files.items():
        for tensor, place in _places(path):
            if tensor in places:
                _refuse(f"{tensor} is in more than one file")
            if weight_map.get(tensor) != name:
                _refuse(f"{tensor} is in a file that the index does not name for it")
            places[tensor] = place
    if missing := sorted(weight_map.keys() - places.keys()):
        _refuse(f"{missing[0]} is in none of the files")
    held = sum(info.num_bytes for _, _, info in places.values())
    if total_size not in (None, held):
        _refuse(f"the tensors take {held} bytes, the index says {total_size}")
    return _write(places, target)


def _places(path: Path) -> Iterator[tuple[str, Place]]:
    header = read_header(path)
    begin = header.start
    for tensor, info in header.tensors.items():
        yield tensor, (path, begin, info)
        begin += info.num_bytes


def _write(places: Mapping[str, Place], target: Path) -> str:
    ordered = sorted(places, key=lambda name: (_ORDER.index(places[name][2].dtype), name))
    entries = {}
    end = 0
    for name in ordered:
        info = places[name][2]
        offsets = [end, end := end + info.num_bytes]
        entries[name] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": offsets}
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % _ALIGNED)
    digest = hashlib.sha256()
    with target.open("xb") as file:
        for chunk in _whole(header, ordered, places):
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()


def _whole(header: bytes, ordered: list[str], places: Mapping[str, Place]) -> Iterator[bytes]:
    yield len(header).to_bytes(8, "little")
    yield header
    for name in ordered:
        path, begin, info = places[name]
        with path.open("rb") as file:
            file.seek(begin)
            yield from _chunks(file, info.num_bytes)


def _chunks(file: BinaryIO, left: int) -> Iterator[bytes]:
    while left:
        chunk = file.read(min(left, CHUNK_BYTES))
        assert chunk  # the header was checked against the size of the file
        left -= len(chunk)
        yield chunk


def _refuse(detail: str) -> NoReturn:
    raise InvalidInput("shards_mismatch", detail)
