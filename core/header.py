"""A strict reader of safetensors headers, without torch.

The library accepts files that two readers may understand differently (duplicate keys), or that
cost far more than their size (hundreds of thousands of tensors, ranks of a thousand, empty tensors
beside huge dimensions). These are refused here, before anything else opens the file.
"""

from __future__ import annotations

import gc
import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from .errors import InvalidInput

MAX_HEADER = 16 << 20
MAX_TENSORS = 50_000
MAX_RANK = 8
MAX_DIM = 2**31
MAX_METADATA = 64 << 10

ITEM_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
"""Accepted dtypes with their bytes per element."""

_NAME = re.compile(r"[A-Za-z0-9_.\-/:]{1,256}")
_FIELDS = {"dtype", "shape", "data_offsets"}
_OTHER_FORMATS = (
    b"PK\x03\x04",
    b"PK\x05\x06",
    b"\x80\x02",
    b"\x80\x03",
    b"\x80\x04",
    b"\x80\x05",
    b"\x1f\x8b",
    b"\x89HDF",
    b"\x89PNG",
    b"\x93NUMPY",
    b"GGUF",
    b"PAR1",
    b"%PDF",
)


@dataclass(frozen=True)
class TensorInfo:
    """Dtype in the notation of safetensors, and shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """How many bytes it takes."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Header:
    """What a safetensors file says it holds; checked against the size of the file."""

    tensors: dict[str, TensorInfo]
    """In the order of their bytes, which follow one another without a gap."""
    metadata: dict[str, str]
    start: int
    """Where in the file the first tensor begins."""


def read_header(path: Path) -> Header:
    """Read and check the header of a safetensors file; the tensors are not read.

    Raises:
        InvalidInput: ``model_file_empty``, ``media_type_mismatch`` or a code of ``safetensors_*``.
    """
    with _no_collections():
        return _read(path)


@contextmanager
def _no_collections() -> Iterator[None]:
    """Spare the garbage collector looks at what is being made: half of the time for many tensors.

    Where two threads are here at once, the one that paused it goes on with it.
    """
    paused = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if paused:
            gc.enable()


def _read(path: Path) -> Header:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(16)
        length = _length(start, size)
        file.seek(8)
        raw = _parse(file.read(length))
    metadata = _metadata(raw.pop("__metadata__", {}))
    if not raw:
        _refuse("safetensors_no_tensors", "the file holds no tensors")
    if len(raw) > MAX_TENSORS:
        _refuse_count()
    tensors = {name: _tensor(name, entry) for name, entry in raw.items()}
    _check_layout([entry["data_offsets"] for entry in raw.values()], size - 8 - length)
    ordered = sorted(tensors, key=lambda name: raw[name]["data_offsets"])
    return Header({name: tensors[name] for name in ordered}, metadata, 8 + length)


def _length(start: bytes, size: int) -> int:
    """Return the header's length; ``start`` is the beginning of the file."""
    if size == 0:
        _refuse("model_file_empty", "the file is empty")
    length = int.from_bytes(start[:8], "little")
    looks_right = length <= MAX_HEADER and start[8:9] == b"{"
    if not looks_right and start.startswith(_OTHER_FORMATS):
        _refuse("media_type_mismatch", "the file is in another format; only safetensors is taken")
    if size < 8:
        _refuse("safetensors_header_truncated", "the file ends before its header")
    if length > MAX_HEADER:
        _refuse("safetensors_header_too_large", f"the header exceeds {MAX_HEADER} bytes")
    if length > size - 8:
        _refuse("safetensors_header_truncated", "the file ends within its header")
    if start[8:9] != b"{" or length == 0:
        _refuse("safetensors_header_invalid", "the header is not a JSON object")
    return length


def _parse(data: bytes) -> dict[str, Any]:
    if data.count(b'"data_offsets"') > MAX_TENSORS:
        # parsing would take seconds only to count them
        _refuse_count()
    try:
        raw = json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant
        )
    except (ValueError, RecursionError):
        _refuse("safetensors_header_invalid", "the header is not valid JSON")
    if not isinstance(raw, dict):
        _refuse("safetensors_header_invalid", "the header is not a JSON object")
    return raw


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        _refuse("safetensors_duplicate_key", "the header holds a key twice")
    return unique


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _metadata(raw: Any) -> dict[str, str]:
    if not isinstance(raw, dict) or not all(isinstance(value, str) for value in raw.values()):
        _refuse("safetensors_metadata_invalid", "metadata must map strings to strings")
    if sum(len(key) + len(value) for key, value in raw.items()) > MAX_METADATA:
        _refuse("safetensors_metadata_too_large", f"metadata exceeds {MAX_METADATA} characters")
    return raw


def _tensor(name: str, entry: Any) -> TensorInfo:
    if not _NAME.fullmatch(name) or ".." in name:
        _refuse("safetensors_name_invalid", "a tensor name is empty, too long or not allowed")
    if not isinstance(entry, dict) or set(entry) != _FIELDS:
        _refuse("safetensors_header_invalid", f"{name}: fields must be dtype, shape, data_offsets")
    dtype = entry["dtype"]
    if not isinstance(dtype, str):
        _refuse("safetensors_header_invalid", f"{name}: dtype is not a string")
    if dtype not in ITEM_BYTES:
        _refuse("safetensors_dtype_unsupported", f"{name}: dtype is not supported")
    begin, end = _offsets(name, entry["data_offsets"])
    shape = _shape(name, entry["shape"], ITEM_BYTES[dtype])
    if math.prod(shape) * ITEM_BYTES[dtype] != end - begin:
        _refuse("safetensors_shape_mismatch", f"{name}: shape and dtype do not fit the offsets")
    return TensorInfo(dtype, shape)


def _offsets(name: str, raw: Any) -> tuple[int, int]:
    if not _is_sizes(raw) or len(raw) != 2:
        _refuse("safetensors_header_invalid", f"{name}: data_offsets must be two whole numbers")
    if raw[1] < raw[0]:
        _refuse("safetensors_offsets_invalid", f"{name}: ends before it begins")
    return raw[0], raw[1]


def _shape(name: str, raw: Any, item_bytes: int) -> tuple[int, ...]:
    if not _is_sizes(raw):
        _refuse("safetensors_header_invalid", f"{name}: dimensions must be whole numbers from 0")
    if len(raw) > MAX_RANK:
        _refuse("safetensors_rank_too_large", f"{name}: more than {MAX_RANK} dimensions")
    if math.prod(raw) * item_bytes >= 2**63:
        _refuse("safetensors_shape_overflow", f"{name}: size is beyond 64 bits")
    if any(dim > MAX_DIM for dim in raw):
        _refuse("safetensors_dim_too_large", f"{name}: a dimension exceeds {MAX_DIM}")
    if 0 in raw:
        _refuse("safetensors_empty_tensor", f"{name}: holds no elements")
    return tuple(raw)


def _is_sizes(raw: Any) -> bool:
    # bool is a subclass of int, and true is no dimension
    return isinstance(raw, list) and {int}.issuperset(map(type, raw)) and min(raw, default=0) >= 0


def _check_layout(offsets: list[list[int]], num_bytes: int) -> None:
    position = 0
    for begin, end in sorted(offsets):
        if begin != position:
            _refuse("safetensors_offsets_invalid", "tensors overlap or leave a gap")
        position = end
    if position > num_bytes:
        _refuse("safetensors_offsets_invalid", "the file ends within its tensors")
    if position < num_bytes:
        _refuse("safetensors_trailing_data", "the file goes on after its last tensor")


def _refuse_count() -> NoReturn:
    _refuse("safetensors_too_many_tensors", f"the file holds more than {MAX_TENSORS} tensors")


def _refuse(code: str, detail: str) -> NoReturn:
    raise InvalidInput(code, detail)
