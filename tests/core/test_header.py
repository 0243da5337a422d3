"""Rows B1-B28 of the bad-input corpus, and what a good file looks like."""

from __future__ import annotations

import gc
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from core.errors import InvalidInput
from core.header import MAX_HEADER, TensorInfo, read_header


def entry(shape: Any = (1,), begin: int = 0, end: int = 4, dtype: Any = "F32") -> dict[str, Any]:
    shape = list(shape) if isinstance(shape, tuple) else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def packed(header: Any, data: bytes = b"\0" * 4) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def one(**changes: Any) -> bytes:
    return packed({"w": entry(**changes)})


def of_shape(shape: Any) -> bytes:
    return packed({"w": entry(shape=shape)})


def named(name: str) -> bytes:
    return packed({name: entry()})


def many(count: int) -> bytes:
    # no object per tensor: this is done wherever tests are collected
    line = '"t{}": {{"dtype": "F32", "shape": [1], "data_offsets": [{}, {}]}}'
    text = ", ".join(line.format(i, 4 * i, 4 * i + 4) for i in range(count))
    return packed(f"{{{text}}}".encode(), b"\0" * 4 * count)


E1 = json.dumps(entry())
ROWS = {
    "B1": (b"", "model_file_empty"),
    "B2": (b"\0" * 7, "safetensors_header_truncated"),
    "B3": (b"\xff" * 8 + b"{}", "safetensors_header_too_large"),
    "B4-declared": (struct.pack("<Q", 100_000_001) + b"{}", "safetensors_header_too_large"),
    "B4-real": (packed(b"{" + b" " * (17 << 20)), "safetensors_header_too_large"),
    "B5": (struct.pack("<Q", 1000) + b"{}", "safetensors_header_truncated"),
    "B6": (struct.pack("<Q", 0) + b"\0" * 8, "safetensors_header_invalid"),
    "B7": (packed([]), "safetensors_header_invalid"),
    "B8": (packed(b'{"\xff\xfe": 1}'), "safetensors_header_invalid"),
    "B9": (packed(b'{"a":' * 5000 + b"1" + b"}" * 5000), "safetensors_header_invalid"),
    "B10": (
        packed(f'{{"w": {E1}, "w": {E1.replace("F32", "I32")}}}'.encode()),
        "safetensors_duplicate_key",
    ),
    "B10-inner": (
        packed(f'{{"w": {E1[:-1]}, "dtype": "I32"}}}}'.encode()),
        "safetensors_duplicate_key",
    ),
    "B11": (
        packed({"a": entry((2,), 0, 8), "b": entry((2,), 4, 12)}, b"\0" * 12),
        "safetensors_offsets_invalid",
    ),
    "B12": (
        packed({"a": entry(), "b": entry((1,), 8, 12)}, b"\0" * 12),
        "safetensors_offsets_invalid",
    ),
    "B12-start": (packed({"a": entry((1,), 4, 8)}, b"\0" * 8), "safetensors_offsets_invalid"),
    "B13": (one() + b"x", "safetensors_trailing_data"),
    "B13-zip": (one() + b"PK\x03\x04" + b"\0" * 30, "safetensors_trailing_data"),
    "B14": (one(shape=(3,)), "safetensors_shape_mismatch"),
    "B15": (one(shape=(2**40, 2**40)), "safetensors_shape_overflow"),
    "B16": (one(shape=(0, 2**62), end=0), "safetensors_dim_too_large"),
    "B17": (
        packed({"a": entry(), "b": entry((0,), 4, 4)}),
        "safetensors_empty_tensor",
    ),
    "B18-negative": (of_shape([-1]), "safetensors_header_invalid"),
    "B18-float": (of_shape([1.0]), "safetensors_header_invalid"),
    "B18-string": (of_shape(["1"]), "safetensors_header_invalid"),
    "B18-bool": (of_shape([True]), "safetensors_header_invalid"),
    "B19": (one(begin=4, end=0), "safetensors_offsets_invalid"),
    "B20": (one(dtype="F7"), "safetensors_dtype_unsupported"),
    "B20-complex": (one(dtype="C64"), "safetensors_dtype_unsupported"),
    "B21": (packed({"__metadata__": {"a": 1}, "w": entry()}), "safetensors_metadata_invalid"),
    "B21-list": (packed({"__metadata__": [], "w": entry()}), "safetensors_metadata_invalid"),
    "B22": (
        packed({"__metadata__": {"a": "x" * (1 << 20)}, "w": entry()}),
        "safetensors_metadata_too_large",
    ),
    "B23": (many(200_000), "safetensors_too_many_tensors"),
    "B23-escaped": (
        packed(many(50_001)[8:-200_004].replace(b"offsets", b"offset\\u0073"), b""),
        "safetensors_too_many_tensors",
    ),
    "B24": (one(shape=(1,) * 1000), "safetensors_rank_too_large"),
    "B25-empty": (named(""), "safetensors_name_invalid"),
    "B25-path": (named("../x"), "safetensors_name_invalid"),
    "B25-nul": (named("a\0b"), "safetensors_name_invalid"),
    "B25-newline": (named("a\n"), "safetensors_name_invalid"),
    "B25-long": (named("a" * 10_240), "safetensors_name_invalid"),
    "B26": (packed({}), "safetensors_no_tensors"),
    "B26-metadata": (packed({"__metadata__": {"a": "b"}}), "safetensors_no_tensors"),
    "B28-pickle": (b"\x80\x04\x95\x0b\0\0\0\0\0\0\0\x8c\x02os.", "media_type_mismatch"),
    "B28-old-pickle": (b"\x80\x02}q\0.", "media_type_mismatch"),
    "B28-zip": (b"PK\x03\x04" + b"\0" * 60, "media_type_mismatch"),
    "unknown-field": (packed({"w": {**entry(), "x": 1}}), "safetensors_header_invalid"),
    "missing-field": (packed({"w": {"dtype": "F32"}}), "safetensors_header_invalid"),
    "body-truncated": (packed({"w": entry()}, b"\0" * 3), "safetensors_offsets_invalid"),
    "not-a-number": (packed(b'{"w": NaN}'), "safetensors_header_invalid"),
    "digits": (packed(b'{"w": ' + b"9" * 5000 + b"}"), "safetensors_header_invalid"),
}


@pytest.mark.parametrize(("content", "code"), ROWS.values(), ids=ROWS)
def test_bad_file_is_refused_with_its_code(tmp_path: Path, content: bytes, code: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(InvalidInput) as caught:
        read_header(path)
    assert caught.value.code == code


def test_a_file_of_the_library_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    tensors = {"a.weight": torch.ones(2, 3), "steps": torch.tensor(7)}
    save_file(tensors, path, metadata={"format": "pt"})
    header = read_header(path)
    assert header.tensors == {
        "a.weight": TensorInfo("F32", (2, 3)),
        "steps": TensorInfo("I64", ()),
    }
    assert header.metadata == {"format": "pt"}


@pytest.mark.parametrize("length", [0x280, 0x380, 0x480, 0x580, 0x10280])
def test_a_header_length_that_looks_like_a_pickle_is_accepted(tmp_path: Path, length: int) -> None:
    path = tmp_path / "model.safetensors"
    raw = json.dumps({"w": entry()}).encode().ljust(length)
    path.write_bytes(packed(raw))
    assert read_header(path).tensors == {"w": TensorInfo("F32", (1,))}


def test_the_longest_header_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(packed(json.dumps({"w": entry()}).encode().ljust(MAX_HEADER)))
    assert len(read_header(path).tensors) == 1


def test_the_garbage_collector_goes_on_whatever_was_found(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(InvalidInput):
        read_header(tmp_path / "empty")
    assert gc.isenabled()
    gc.disable()
    try:
        with pytest.raises(InvalidInput):
            read_header(tmp_path / "empty")
        assert not gc.isenabled()
    finally:
        gc.enable()
