"""Cells of an uploaded dataset: checked column by column, batch by batch, before they are used.

Messages name the column and the rule, never a cell.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from .data import Modality
from .errors import InvalidInput

MAX_TEXT = 512
"""Characters of an id or a subject."""
MAX_CELL = 32 << 20
"""Bytes of one image."""
MAX_FEATURES = 65_536
MAX_LABEL = 999_999


def stored_bytes(column: pa.Array, modality: Modality) -> int:
    """Bytes that values take once unrolled; ``dataset_cell_too_large`` if one is too large."""
    if modality == "features":
        longest = pc.max(pc.list_value_length(column)).as_py() or 0
        if longest > MAX_FEATURES:
            raise InvalidInput(
                "dataset_cell_too_large", f"a record has more than {MAX_FEATURES} features"
            )
        return len(column.flatten()) * 4
    lengths = _lengths(_image_bytes(column))
    if (pc.max(lengths).as_py() or 0) > MAX_CELL:
        raise InvalidInput("dataset_cell_too_large", f"an image exceeds {MAX_CELL} bytes")
    return pc.sum(lengths).as_py() or 0


def _lengths(column: pa.Array) -> pa.Array:
    """Length of each cell in bytes, without unrolling a dictionary."""
    if isinstance(column, pa.DictionaryArray):
        return pc.binary_length(column.dictionary).take(column.indices)
    return pc.binary_length(column)


def _image_bytes(column: pa.Array) -> pa.Array:
    return pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column


def texts(column: pa.Array, name: str) -> list[str]:
    """Read ids: text of 1 to 512 characters, or whole numbers as text."""
    if column.null_count:
        raise invalid(name, "must not be empty")
    if not pa.types.is_integer(column.type):
        _check_text(column, name)
    return _to_texts(column)


def optional_texts(column: pa.Array, name: str) -> list[str | None]:
    """Read subjects: as ids, or nothing."""
    if not pa.types.is_integer(column.type):
        _check_text(column, name)
    values: list[str | None] = column.cast(pa.string()).to_pylist()
    return values


def _check_text(column: pa.Array, name: str) -> None:
    if (pc.max(_lengths(column)).as_py() or 0) > 4 * MAX_TEXT:
        raise invalid(name, f"must have at most {MAX_TEXT} characters")
    plain = column.cast(pa.string())
    lengths = pc.min_max(pc.utf8_length(plain)).as_py()
    if (lengths["max"] or 0) > MAX_TEXT or lengths["min"] == 0:
        raise invalid(name, f"must have 1 to {MAX_TEXT} characters")
    if pc.any(pc.match_substring_regex(plain, r"\p{Cc}")).as_py():
        raise invalid(name, "must hold no control characters")


def _to_texts(column: pa.Array) -> list[str]:
    values: list[str] = column.cast(pa.string()).to_pylist()
    return values


def labels(column: pa.Array) -> list[int]:
    """Read labels: class indices from 0."""
    limits = pc.min_max(column).as_py()
    if column.null_count or limits["min"] < 0 or limits["max"] > MAX_LABEL:
        raise invalid("label", f"must be 0 to {MAX_LABEL}")
    values: list[int] = column.to_pylist()
    return values


def splits(column: pa.Array) -> list[str]:
    """Read splits: ``train`` or ``holdout``."""
    names = texts(column, "split")
    if not set(names) <= {"train", "holdout"}:
        raise invalid("split", "must be train or holdout")
    return names


def images(column: pa.Array) -> list[bytes]:
    """Read encoded images."""
    cells = _image_bytes(column)
    if cells.null_count:
        raise invalid("image", "must hold encoded bytes in every record")
    values: list[bytes] = cells.to_pylist()
    return values


def features(column: pa.Array) -> npt.NDArray[np.float32]:
    """Read features: float32[N, D], finite, all records equally wide."""
    lengths = pc.min_max(pc.list_value_length(column)).as_py()
    flat = column.flatten()
    if column.null_count or flat.null_count:
        raise invalid("features", "must not be empty")
    if lengths["min"] != lengths["max"] or lengths["min"] == 0:
        raise invalid("features", "must all have the same length, at least 1")
    with np.errstate(over="ignore"):
        values = np.asarray(flat.to_numpy(zero_copy_only=False)).astype(np.float32)
    if not np.isfinite(values).all():
        raise invalid("features", "must be finite in float32")
    return values.reshape(len(column), -1)


def invalid(name: str, rule: str) -> InvalidInput:
    """``dataset_values_invalid`` for a column that breaks a rule."""
    return InvalidInput("dataset_values_invalid", f"{name}: values {rule}")
