"""Parquet from strangers: bounded by what is read, not by what the footer says.

The file is read in small batches; strings and images stay dictionary-encoded until their lengths
are known, so a page that repeats one huge cell is refused before it is unrolled. Messages name
columns and limits, never contents.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from . import cells
from .data import Modality
from .errors import InvalidInput

MAX_COLUMNS = 64
MAX_DEPTH = 8
MAX_FOOTER = 16 << 20
MAX_BYTES = 8 << 30
"""Bytes of all images or features together, once unrolled."""

_BATCH = {"image": 64, "features": 512}
"""Records read at a time; the largest allowed cells of a batch must fit into memory."""
_KNOWN = {"id", "label", "split", "subject", "image", "features"}


@dataclass(frozen=True)
class Batch:
    """Consecutive records of a source, checked one by one but for duplicates."""

    ids: list[str]
    labels: list[int]
    splits: list[str]
    subjects: list[str | None]
    images: list[bytes] | None
    features: npt.NDArray[np.float32] | None

    def __len__(self) -> int:
        return len(self.ids)


class Source:
    """An uploaded parquet file with the columns of a dataset.

    Raises:
        InvalidInput: ``dataset_invalid``, ``dataset_encrypted``, ``dataset_schema_too_large``,
            ``dataset_type_unsupported``, ``dataset_values_invalid``, ``dataset_too_many_rows``.
    """

    def __init__(self, path: Path, max_records: int) -> None:
        _check_frame(path)
        self.path, self.max_records = path, max_records
        file = _open(path, [])
        names = _check_schema(file)
        self.schema: pa.Schema = file.schema_arrow
        self.modality: Modality = "image" if "image" in names else "features"
        self.claimed_rows: int = file.metadata.num_rows
        self._check_rows(self.claimed_rows)
        # encoded images do not compress, so what unrolls to far more than the file is a bomb
        bound = (64 << 20) + 16 * path.stat().st_size
        self.max_bytes = min(MAX_BYTES, bound) if self.modality == "image" else MAX_BYTES
        texts = [name for name in names if _is_text_or_binary(self.schema.field(name).type)]
        file.close()
        self._file = _open(path, texts)

    def batches(self) -> Iterator[Batch]:
        """Yield the records in order, checking each batch.

        Raises:
            InvalidInput: as above, and ``dataset_cell_too_large`` or ``dataset_too_large``.
        """
        rows = size = 0
        width: int | None = None
        for raw in self._raw():
            rows += len(raw)
            self._check_rows(rows)
            size += cells.stored_bytes(raw.column(self.modality), self.modality)
            if size > self.max_bytes:
                raise InvalidInput("dataset_too_large", f"values exceed {self.max_bytes} bytes")
            batch = _checked(raw, self.modality)
            if batch.features is not None:
                width = batch.features.shape[1] if width is None else width
                if batch.features.shape[1] != width:
                    raise cells.invalid("features", "must all have the same length")
            yield batch

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _raw(self) -> Iterator[pa.RecordBatch]:
        batches = self._file.iter_batches(batch_size=_BATCH[self.modality], use_threads=False)
        while True:
            try:
                raw = next(batches, None)
                if raw is not None:
                    raw.validate(full=True)
            except (pa.ArrowException, OSError, MemoryError) as error:
                raise _unreadable(error) from None
            if raw is None:
                return
            if len(raw):
                yield raw

    def _check_rows(self, rows: int) -> None:
        if rows > self.max_records:
            raise InvalidInput(
                "dataset_too_many_rows", f"a dataset holds at most {self.max_records} records"
            )


def _check_frame(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(4)
        size = file.seek(0, 2)
        file.seek(max(0, size - 8))
        tail = file.read(8)
    if tail[4:] == b"PARE":
        raise InvalidInput("dataset_encrypted", "encrypted parquet can't be read")
    if size < 12 or head != b"PAR1" or tail[4:] != b"PAR1":
        raise InvalidInput("dataset_invalid", "the file is not parquet, or it is truncated")
    footer = int.from_bytes(tail[:4], "little")
    if footer > size - 12:
        raise InvalidInput("dataset_invalid", "the footer is longer than the file")
    if footer > MAX_FOOTER:
        raise InvalidInput("dataset_schema_too_large", f"the footer exceeds {MAX_FOOTER} bytes")


def _open(path: Path, read_dictionary: list[str]) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(
            path, buffer_size=1 << 20, pre_buffer=False, read_dictionary=read_dictionary
        )
    except (pa.ArrowException, OSError, MemoryError, ValueError) as error:
        raise _unreadable(error) from None


def _unreadable(error: BaseException) -> InvalidInput:
    text = str(error).lower()
    if "encrypt" in text or "decrypt" in text:
        return InvalidInput("dataset_encrypted", "encrypted parquet can't be read")
    return InvalidInput("dataset_invalid", "the file can't be read as parquet")


def _check_schema(file: pq.ParquetFile) -> list[str]:
    leaves = file.metadata.num_columns
    if leaves > MAX_COLUMNS:
        raise InvalidInput("dataset_schema_too_large", f"more than {MAX_COLUMNS} columns")
    if any(file.schema.column(i).path.count(".") >= MAX_DEPTH for i in range(leaves)):
        raise InvalidInput("dataset_schema_too_large", f"columns nest deeper than {MAX_DEPTH}")
    names: list[str] = list(file.schema_arrow.names)
    if len(set(names)) != len(names) or not set(names) <= _KNOWN:
        raise InvalidInput(
            "dataset_invalid", f"columns must be unique and among {', '.join(sorted(_KNOWN))}"
        )
    if not {"id", "label"} <= set(names) or ("image" in names) == ("features" in names):
        raise InvalidInput(
            "dataset_invalid", "a dataset needs id, label, and either image or features"
        )
    for field in file.schema_arrow:
        _check_type(field)
    return names


def _check_type(field: pa.Field) -> None:
    kind = field.type
    extension = isinstance(kind, pa.BaseExtensionType) or (
        b"ARROW:extension:name" in (field.metadata or {})
    )
    if extension:
        raise InvalidInput("dataset_type_unsupported", f"{field.name} is an extension type")
    if field.name == "label" and pa.types.is_floating(kind):
        raise cells.invalid("label", "must be whole numbers")
    if not _FITS[field.name](kind):
        raise InvalidInput("dataset_type_unsupported", f"{field.name} has an unsupported type")


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_text_or_binary(kind: pa.DataType) -> bool:
    return _is_binary(kind) or (_is_text(kind) and not pa.types.is_dictionary(kind))


def _is_key(kind: pa.DataType) -> bool:
    return _is_text(kind) or bool(pa.types.is_integer(kind))


def _is_image(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        inner = {field.name: field.type for field in kind}
        return set(inner) <= {"bytes", "path"} and _is_binary(inner.get("bytes", pa.null()))
    return _is_binary(kind)


def _is_features(kind: pa.DataType) -> bool:
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if not any(is_list(kind) for is_list in lists):
        return False
    return bool(pa.types.is_integer(kind.value_type) or pa.types.is_floating(kind.value_type))


_FITS = {
    "id": _is_key,
    "subject": _is_key,
    "split": _is_text,
    "label": pa.types.is_integer,
    "image": _is_image,
    "features": _is_features,
}


def _checked(raw: pa.RecordBatch, modality: Modality) -> Batch:
    column = {name: raw.column(name) for name in raw.schema.names}
    is_image = modality == "image"
    return Batch(
        ids=cells.texts(column["id"], "id"),
        labels=cells.labels(column["label"]),
        splits=cells.splits(column["split"]) if "split" in column else ["train"] * len(raw),
        subjects=(
            cells.optional_texts(column["subject"], "subject")
            if "subject" in column
            else [None] * len(raw)
        ),
        images=cells.images(column["image"]) if is_image else None,
        features=None if is_image else cells.features(column["features"]),
    )
