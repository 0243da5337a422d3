"""Ingest: uploads become canonical files, hostile ones get their code (rows of table E)."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe
import pytest
from PIL import Image

from core.errors import InvalidInput
from core.ingest import ingest
from tests.worlds import digits_world, gaussian_world, png, write_dataset

DOT = png(np.zeros((8, 8, 3), dtype=np.uint8))


def table(count: int = 4, **changes: Any) -> pa.Table:
    columns: dict[str, Any] = {
        "id": [f"secret-{i}" for i in range(count)],
        "label": list(range(count)),
        "features": [[float(i), 1.0] for i in range(count)],
        **changes,
    }
    return pa.table({name: values for name, values in columns.items() if values is not None})


def pictures(*cells: Any) -> pa.Table:
    return table(len(cells), features=None, image=list(cells))


def run(tmp_path: Path, source: pa.Table | bytes, max_records: int = 1000) -> dict[str, Any]:
    path = tmp_path / "upload.parquet"
    if isinstance(source, bytes):
        path.write_bytes(source)
    else:
        pq.write_table(source, path)
    return ingest(source=path, out=tmp_path, max_records=max_records)


def index_of(tmp_path: Path) -> list[Any]:
    return [json.loads(line) for line in (tmp_path / "index.jsonl").read_text().splitlines()]


def picture(size: tuple[int, int] = (8, 8), kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    mode = options.pop("mode", "RGB")
    Image.new(mode, size).save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunk(kind: bytes, data: bytes) -> bytes:
    """Put a chunk behind the header of a good PNG."""
    good = picture()
    return good[:33] + chunk(kind, data) + good[33:]


def png_header(width: int, height: int) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def animated(kind: str) -> bytes:
    frames = [Image.new("RGB", (8, 8), (80 * i, 0, 0)) for i in range(3)]
    buffer = io.BytesIO()
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def extension() -> pa.Table:
    field = pa.field("features", pa.list_(pa.float32()), metadata={"ARROW:extension:name": "x.y"})
    good = table()
    schema = pa.schema([good.schema.field("id"), good.schema.field("label"), field])
    return good.cast(schema)


def tail_lie(length: int) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table(), buffer)
    return buffer.getvalue()[:-8] + struct.pack("<I", length) + b"PAR1"


def whole() -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table(), buffer)
    return buffer.getvalue()


def broken_page() -> bytes:
    data = bytearray(whole())
    data[4:60] = b"\xff" * 56
    return bytes(data)


def deep(depth: int) -> pa.Table:
    kind = pa.float32()
    for _ in range(depth):
        kind = pa.struct([("x", kind)])
    return table().append_column("deep", pa.nulls(4, kind))


def invalid_text() -> pa.Table:
    cells = pa.array([b"a", b"\xff\xfe", b"c", b"d"])
    return table(id=pa.Array.from_buffers(pa.string(), 4, cells.buffers()))


def one_cell_often() -> bytes:
    """500 records of 24 MiB in a file of a few kilobytes."""
    count = 500
    cell = pa.array([b"\x89PNG" + b"\0" * (24 << 20)])
    image = pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), cell)
    buffer = io.BytesIO()
    pq.write_table(table(count, features=None, image=image), buffer, store_schema=False)
    assert len(buffer.getvalue()) < 2 << 20
    return buffer.getvalue()


class Lying:
    """Metadata of a file that claims a single row."""

    num_rows = 1

    def __init__(self, file: pq.ParquetFile) -> None:
        self.real = file.reader.metadata

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


class Keys(pe.KmsClient):  # type: ignore[misc]
    """Wraps keys in nothing; enough to write an encrypted file."""

    def wrap_key(self, key_bytes: bytes, master_key_identifier: str) -> str:
        return key_bytes.hex()

    def unwrap_key(self, wrapped_key: str, master_key_identifier: str) -> bytes:
        return bytes.fromhex(wrapped_key)


def encrypted(*, plaintext_footer: bool) -> bytes:
    settings = pe.EncryptionConfiguration(
        footer_key="k", column_keys={"k": ["features.list.element"]}
    )
    settings.plaintext_footer = plaintext_footer
    factory = pe.CryptoFactory(lambda _: Keys())
    properties = factory.file_encryption_properties(pe.KmsConnectionConfig(), settings)
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, table().schema, encryption_properties=properties) as writer:
        writer.write_table(table())
    return buffer.getvalue()


LONG = "x" * 513
NAN = float("nan")
ROWS: dict[str, tuple[Callable[[], pa.Table | bytes], str]] = {
    "E1": (lambda: table(200_000, label=[0] * 200_000), "dataset_too_many_rows"),
    "E2-text": (lambda: b"id,label\n1,2\n" * 9, "dataset_invalid"),
    "E2-nothing": (lambda: b"", "dataset_invalid"),
    "E2-truncated": (lambda: whole()[:-20], "dataset_invalid"),
    "E2-footer-short": (lambda: tail_lie(7), "dataset_invalid"),
    "E2-footer-long": (lambda: tail_lie(2**31), "dataset_invalid"),
    "E2-page": (broken_page, "dataset_invalid"),
    "E3-wide": (
        lambda: pa.table({f"c{i}": [1] for i in range(5000)}),
        "dataset_schema_too_large",
    ),
    "E3-deep": (lambda: deep(50), "dataset_schema_too_large"),
    "E4": (extension, "dataset_type_unsupported"),
    "E5": (lambda: encrypted(plaintext_footer=False), "dataset_encrypted"),
    "E5-columns": (lambda: encrypted(plaintext_footer=True), "dataset_encrypted"),
    "E6-image": (lambda: pictures(b"\0" * (33 << 20)), "dataset_cell_too_large"),
    "E6-features": (lambda: table(1, features=[[0.0] * 65_537]), "dataset_cell_too_large"),
    "E6-dictionary": (one_cell_often, "dataset_too_large"),
    "E7": (lambda: pictures(png_header(20_000, 20_000)), "image_too_large"),
    "E8": (lambda: pictures(picture((12_000, 12_000), mode="1")), "image_too_large"),
    "E8-jpeg": (lambda: pictures(picture((9000, 9000), "JPEG", mode="L")), "image_too_large"),
    "E9-text": (
        lambda: pictures(with_chunk(b"zTXt", b"k\0\0" + zlib.compress(b"x" * (80 << 20)))),
        "image_invalid",
    ),
    "E9-icc": (
        lambda: pictures(with_chunk(b"iCCP", b"k\0\0" + zlib.compress(b"x" * (80 << 20)))),
        "image_invalid",
    ),
    "E10-pdf": (lambda: pictures(picture(kind="PDF")), "image_format_unsupported"),
    "E10-eps": (lambda: pictures(picture(kind="EPS")), "image_format_unsupported"),
    "E10-svg": (lambda: pictures(b"<svg xmlns='x'/>"), "image_format_unsupported"),
    "E10-fits": (lambda: pictures(b"SIMPLE  =" + b" " * 99), "image_format_unsupported"),
    "E10-tiff": (lambda: pictures(picture(kind="TIFF")), "image_format_unsupported"),
    "E11-gif": (lambda: pictures(animated("GIF")), "image_format_unsupported"),
    "E11-apng": (lambda: pictures(animated("PNG")), "image_format_unsupported"),
    "E11-webp": (lambda: pictures(animated("WEBP")), "image_format_unsupported"),
    "E12": (lambda: pictures(picture((64, 64), "JPEG")[:-200]), "image_invalid"),
    "E12-header": (lambda: pictures(picture(kind="JPEG")[:30]), "image_invalid"),
    "E12-png": (lambda: pictures(picture((64, 64))[:-30]), "image_invalid"),
    "image-empty": (lambda: pictures(b""), "image_format_unsupported"),
    "image-16-bit": (lambda: pictures(picture(mode="I;16")), "image_format_unsupported"),
    "image-null": (lambda: pictures(DOT, None), "dataset_values_invalid"),
    "image-path-only": (
        lambda: pictures({"bytes": None, "path": "/etc/passwd"}),
        "dataset_type_unsupported",
    ),
    "E19-nan": (lambda: table(features=[[0.0], [NAN], [0.0], [0.0]]), "dataset_values_invalid"),
    "E19-overflow": (lambda: table(1, features=[[1e300]]), "dataset_values_invalid"),
    "E19-ragged": (
        lambda: table(features=[[0.0], [0.0, 1.0], [0.0], [0.0]]),
        "dataset_values_invalid",
    ),
    "E19-no-width": (
        lambda: table(1, features=pa.array([[]], pa.list_(pa.float32()))),
        "dataset_values_invalid",
    ),
    "E19-null-row": (lambda: table(2, features=[[0.0], None]), "dataset_values_invalid"),
    "E19-null-cell": (lambda: table(2, features=[[0.0], [None]]), "dataset_values_invalid"),
    "E19-label-negative": (lambda: table(2, label=[0, -1]), "dataset_values_invalid"),
    "E19-label-huge": (
        lambda: table(2, label=pa.array([0, 2**63], pa.uint64())),
        "dataset_values_invalid",
    ),
    "E19-label-float": (lambda: table(2, label=[0.0, 1.5]), "dataset_values_invalid"),
    "E19-label-null": (lambda: table(2, label=[0, None]), "dataset_values_invalid"),
    "E19-label-text": (lambda: table(2, label=["a", "b"]), "dataset_type_unsupported"),
    "E19-label-bool": (lambda: table(2, label=[True, False]), "dataset_type_unsupported"),
    "E20": (lambda: table(4).slice(0, 0), "dataset_empty"),
    "id-twice": (lambda: table(2, id=["secret-1", "secret-1"]), "dataset_values_invalid"),
    "id-null": (lambda: table(2, id=["secret-1", None]), "dataset_values_invalid"),
    "id-empty": (lambda: table(2, id=["secret-1", ""]), "dataset_values_invalid"),
    "id-long": (lambda: table(2, id=["secret-1", LONG]), "dataset_values_invalid"),
    "id-control": (lambda: table(2, id=["secret-1", "a\nb"]), "dataset_values_invalid"),
    "id-nul": (lambda: table(2, id=["secret-1", "a\0b"]), "dataset_values_invalid"),
    "id-not-text": (invalid_text, "dataset_invalid"),
    "id-float": (lambda: table(2, id=[1.0, 2.0]), "dataset_type_unsupported"),
    "subject-control": (lambda: table(1, subject=["secret-\x07"]), "dataset_values_invalid"),
    "subject-long": (lambda: table(1, subject=[LONG]), "dataset_values_invalid"),
    "split-other": (lambda: table(2, split=["train", "secret-x"]), "dataset_values_invalid"),
    "split-null": (lambda: table(2, split=["train", None]), "dataset_values_invalid"),
    "no-label": (lambda: table(label=None), "dataset_invalid"),
    "no-values": (lambda: table(features=None), "dataset_invalid"),
    "both-values": (lambda: table(1, image=[DOT]), "dataset_invalid"),
    "unknown-column": (lambda: table(1, secret=[1]), "dataset_invalid"),
    "column-twice": (
        lambda: pa.Table.from_arrays([pa.array(["a"])] * 2, names=["id", "id"]),
        "dataset_invalid",
    ),
    "features-text": (lambda: table(1, features=[["a"]]), "dataset_type_unsupported"),
    "features-nested": (lambda: table(1, features=[[[1.0]]]), "dataset_type_unsupported"),
}


@pytest.mark.parametrize(("source", "code"), ROWS.values(), ids=ROWS)
def test_bad_dataset_is_refused_with_its_code_and_without_its_contents(
    tmp_path: Path, source: Callable[[], pa.Table | bytes], code: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        run(tmp_path, source())
    assert caught.value.code == code
    assert "secret" not in caught.value.detail
    assert "passwd" not in caught.value.detail


def test_features_become_canonical_files(tmp_path: Path) -> None:
    world = gaussian_world(num_train=30, num_holdout=10)
    write_dataset(world, tmp_path / "up.parquet", subjects=[f"s{i % 3}" for i in range(40)])
    result = ingest(source=tmp_path / "up.parquet", out=tmp_path, max_records=40)
    assert result == {
        "num_train": 30,
        "num_holdout": 10,
        "num_classes": 4,
        "modality": "features",
        "details": {"num_features": 10},
    }
    index = index_of(tmp_path)
    assert index[0] == ["record-0", int(world.train.labels[0]), "train", "s0"]
    assert index[39][2:] == ["holdout", "s0"]
    stored = pq.read_table(tmp_path / "records.parquet")
    assert stored.column_names == ["id", "label", "split", "features"]
    assert stored["features"].type == pa.list_(pa.float32(), 10)


def test_images_become_canonical_files_with_their_bytes_untouched(tmp_path: Path) -> None:
    cells = [picture((8, 9)), picture((20, 7), "JPEG"), picture((8, 8), "WEBP")]
    result = run(tmp_path, pictures(*cells))
    assert result["details"] == {"height": [7, 9], "width": [8, 20]}
    assert (result["modality"], result["num_train"], result["num_classes"]) == ("image", 3, 3)
    stored = pq.read_table(tmp_path / "records.parquet")
    assert stored["image"].to_pylist() == cells
    assert index_of(tmp_path)[1] == ["secret-1", 1, "train", None]


def test_hugging_face_structs_are_taken(tmp_path: Path) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = pa.array([{"bytes": DOT, "path": None}, {"bytes": DOT, "path": "b.png"}], kind)
    assert run(tmp_path, table(2, features=None, image=cells))["num_train"] == 2
    stored = pq.read_table(tmp_path / "records.parquet")
    assert stored["image"].to_pylist() == [DOT, DOT]
    without = pa.array([{"bytes": DOT, "path": None}, {"bytes": None, "path": "b.png"}], kind)
    with pytest.raises(InvalidInput) as caught:
        run(tmp_path, table(2, features=None, image=without))
    assert caught.value.code == "dataset_values_invalid"


@pytest.mark.parametrize(
    "change",
    [
        {"id": [7, 8]},
        {"id": pa.array(["7", "8"], pa.large_string())},
        {"id": pa.array(["7", "8"]).dictionary_encode()},
        {"split": pa.array(["train", "train"]).dictionary_encode(), "id": ["7", "8"]},
        {"label": pa.array([0, 1], pa.int8()), "id": ["7", "8"]},
        {"features": pa.array([[1], [2]], pa.large_list(pa.uint8())), "id": ["7", "8"]},
        {"features": pa.array([[1], [2]], pa.list_(pa.float64(), 1)), "id": ["7", "8"]},
        {"subject": pa.array([1, None]), "id": ["7", "8"]},
    ],
    ids=[
        "integer ids",
        "large text ids",
        "dictionary ids",
        "dictionary splits",
        "small labels",
        "large lists",
        "fixed lists",
        "integer subjects",
    ],
)
def test_other_spellings_of_the_same_data_are_taken(tmp_path: Path, change: dict[str, Any]) -> None:
    assert run(tmp_path, table(2, **change))["num_train"] == 2
    assert [row[0] for row in index_of(tmp_path)] == ["7", "8"]


def test_ids_of_all_scripts_survive(tmp_path: Path) -> None:
    ids = ["'; DROP TABLE records; --", "\U0001f600", "\u05d0\u05d1", "x" * 512]
    run(tmp_path, table(4, id=ids))
    assert [row[0] for row in index_of(tmp_path)] == ids
    assert pq.read_table(tmp_path / "records.parquet")["id"].to_pylist() == ids


def test_duplicates_are_found_across_batches(tmp_path: Path) -> None:
    ids = [f"secret-{i}" for i in range(600)]
    ids[599] = ids[0]
    with pytest.raises(InvalidInput) as caught:
        run(tmp_path, table(600, id=ids))
    assert caught.value.code == "dataset_values_invalid"


def test_the_limit_of_records_is_inclusive_and_counts_what_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(tmp_path, table(5), max_records=5)["num_train"] == 5
    with pytest.raises(InvalidInput):
        run(tmp_path, table(5), max_records=4)
    monkeypatch.setattr(pq.ParquetFile, "metadata", property(Lying))
    with pytest.raises(InvalidInput) as caught:
        run(tmp_path, table(5), max_records=4)
    assert caught.value.code == "dataset_too_many_rows"


def test_progress_ends_at_one(tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []
    source = write_dataset(digits_world(num_records=40), tmp_path / "up.parquet")
    ingest(
        source=source,
        out=tmp_path,
        max_records=100,
        report=lambda phase, done, eta, rung, metrics: told.append((phase, done)),
    )
    assert told[-1] == ("resolving", 1.0)
