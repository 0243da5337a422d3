"""What kind of model file this is, from a few of its bytes: nothing is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from . import archive
from .errors import InvalidInput
from .header import MAX_HEADER

Kind = Literal["safetensors", "pytorch"]

UNSUPPORTED = frozenset(
    {
        "torchscript_not_supported",
        "exported_program_not_supported",
        "torch_package_not_supported",
        "legacy_torch_format",
    }
)
"""Codes of formats that are known and never taken, because to read them is to run them."""

_ZIP = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06")
_PICKLE = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
"""The number that torch wrote before it wrote zip archives."""


def kind(path: Path) -> Kind:
    """Return ``pytorch`` for what looks like a zip archive or a pickle, else ``safetensors``.

    Raises:
        InvalidInput: with a code of ``UNSUPPORTED``.
    """
    with path.open("rb") as file:
        start = file.read(512)
    length = int.from_bytes(start[:8], "little")
    if length <= MAX_HEADER and start[8:9] == b"{":
        return "safetensors"
    if start.startswith(_LEGACY) or start[257:262] == b"ustar":
        raise InvalidInput(
            "legacy_torch_format",
            "the file is in the format of torch before 1.6; load and save it again with torch",
        )
    if start.startswith(_ZIP):
        archive.refuse_programs(archive.names(path))
        return "pytorch"
    return "pytorch" if start.startswith(_PICKLE) else "safetensors"


def is_zip(path: Path) -> bool:
    """Whether the file begins like a zip archive."""
    with path.open("rb") as file:
        return file.read(4).startswith(_ZIP)
