"""An uploaded parquet file becomes a canonical one, or is refused with a code.

Writes ``records.parquet`` (id, label, split, image or features; what ``core.data`` reads) and
``index.jsonl`` (one array ``[id, label, split, subject or null]`` per record). The subject is in
the index alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from . import images
from .cells import invalid
from .errors import InvalidInput
from .parquet import Batch, Source
from .report import Report, no_report

_GROUP_ROWS = 4096
_GROUP_BYTES = 64 << 20


def ingest(
    *, source: str | Path, out: str | Path, max_records: int, report: Report = no_report
) -> dict[str, Any]:
    """Check every record of ``source`` and write the canonical files into ``out``.

    Args:
        source: the uploaded parquet file.
        out: an existing folder.
        max_records: refuse more.
        report: told the fraction done as phase ``resolving``.

    Returns:
        ``num_train``, ``num_holdout``, ``num_classes``, ``modality`` and ``details``, which holds
        the range of heights and widths, or the number of features.

    Raises:
        InvalidInput: with a code of ``dataset_*`` or ``image_*``; names no record.
    """
    out = Path(out)
    summary = _Summary()
    with ExitStack() as stack:
        opened = Source(Path(source), max_records)
        stack.callback(opened.close)
        index = stack.enter_context((out / "index.jsonl").open("w", encoding="ascii"))
        writer: pq.ParquetWriter | None = None
        for group in _groups(opened.batches()):
            for batch in group:
                summary.add(batch)
                _write_index(index, batch)
            table = _table(group)
            if writer is None:
                writer = stack.enter_context(_writer(out / "records.parquet", table.schema))
            writer.write_table(table, row_group_size=_GROUP_ROWS)
            done = summary.num_records / max(1, opened.claimed_rows)
            report("resolving", min(1.0, done), None, None, {})
        if writer is None:
            raise InvalidInput("dataset_empty", "the dataset holds no records")
    return summary.result()


class _Summary:
    """What is known of all records so far; refuses duplicates and images that do not decode."""

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._holdout = 0
        self._max_label = 0
        self._heights: tuple[int, int] | None = None
        self._widths: tuple[int, int] | None = None
        self._num_features = 0

    @property
    def num_records(self) -> int:
        return len(self._seen)

    def add(self, batch: Batch) -> None:
        expected = len(self._seen) + len(batch)
        self._seen.update(batch.ids)
        if len(self._seen) != expected:
            raise invalid("id", "must be unique")
        self._holdout += batch.splits.count("holdout")
        self._max_label = max(self._max_label, *batch.labels)
        if batch.images is not None:
            sizes = _sizes(batch.images)
            self._heights = _range(self._heights, [height for height, _ in sizes])
            self._widths = _range(self._widths, [width for _, width in sizes])
        elif batch.features is not None:
            self._num_features = batch.features.shape[1]

    def result(self) -> dict[str, Any]:
        details: dict[str, Any] = {"num_features": self._num_features}
        if self._heights is not None and self._widths is not None:
            details = {"height": list(self._heights), "width": list(self._widths)}
        return {
            "num_train": len(self._seen) - self._holdout,
            "num_holdout": self._holdout,
            "num_classes": self._max_label + 1,
            "modality": "features" if self._heights is None else "image",
            "details": details,
        }


def _groups(batches: Iterator[Batch]) -> Iterator[list[Batch]]:
    """Collect batches into row groups of bounded size."""
    group: list[Batch] = []
    rows = size = 0
    for batch in batches:
        group.append(batch)
        rows += len(batch)
        size += sum(map(len, batch.images)) if batch.images is not None else 0
        if rows >= _GROUP_ROWS or size >= _GROUP_BYTES:
            yield group
            group, rows, size = [], 0, 0
    if group:
        yield group


def _sizes(cells: list[bytes]) -> list[tuple[int, int]]:
    sizes = [(0, 0)] * len(cells)

    def check(start: int) -> None:
        for index, cell in enumerate(cells[start : start + images.CHUNK], start):
            sizes[index] = images.check(cell)

    images.each(check, cells)
    return sizes


def _range(known: tuple[int, int] | None, values: list[int]) -> tuple[int, int]:
    low, high = known or (values[0], values[0])
    return min(low, *values), max(high, *values)


def _table(group: list[Batch]) -> pa.Table:
    columns = {
        "id": pa.array([i for batch in group for i in batch.ids], pa.string()),
        "label": pa.array([i for batch in group for i in batch.labels], pa.int64()),
        "split": pa.array([i for batch in group for i in batch.splits], pa.string()),
    }
    if group[0].images is not None:
        cells = [cell for batch in group for cell in batch.images or ()]
        columns["image"] = pa.array(cells, pa.binary())
    else:
        columns["features"] = pa.concat_arrays(
            pa.FixedSizeListArray.from_arrays(
                pa.array(batch.features.ravel()), batch.features.shape[1]
            )
            for batch in group
            if batch.features is not None
        )
    return pa.table(columns)


def _writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    # images are compressed already, and ids are all different
    compression = {name: "zstd" for name in schema.names if name != "image"}
    if "image" in schema.names:
        compression["image"] = "none"
    return pq.ParquetWriter(path, schema, compression=compression, use_dictionary=["split"])


def _write_index(index: TextIO, batch: Batch) -> None:
    for row in zip(batch.ids, batch.labels, batch.splits, batch.subjects, strict=True):
        index.write(json.dumps(row) + "\n")
