"""A strict look at the zip archives that ``torch.save`` writes, without torch.

Two readers of a zip may see two different archives. So nothing is taken that leaves a choice:
members are stored as they are, lie side by side from the first byte to the directory, and are
called the same in both places; none is there that torch does not write.
"""

from __future__ import annotations

import re
import stat
import struct
import zipfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

from .errors import InvalidInput

MAX_MEMBERS = 100_000
MAX_DIRECTORY = 32 << 20
MAX_PICKLE = 16 << 20
SMALL_DIRECTORY = 1 << 20
"""Bytes of a directory that is read within a call; a larger one is left to the runner."""

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_LOCAL = struct.Struct("<4s5H3L2H")
_FLAGS = (0, 0x8, 0x800, 0x808)
"""Sizes behind the data, names in UTF-8: what torch writes. Encryption and the rest are not."""
_MAX_GAP = 24
"""Between two members there may be the sizes and the checksum of the first."""
_MEMBER = re.compile(
    r"data\.pkl|version|byteorder|\.format_version|\.storage_alignment"
    r"|\.data/serialization_id|\.data/version|data/[A-Za-z0-9_]{1,64}"
)
_UNREADABLE = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    struct.error,
    ValueError,
    OSError,
    NotImplementedError,
    OverflowError,
)


@dataclass(frozen=True)
class Contents:
    """What an archive holds."""

    pickle: bytes
    sizes: Counter[int]
    """How many storages there are of each size in bytes."""


def names(path: Path) -> list[str]:
    """Names of the members below the root folder; none if the directory is large or broken."""
    try:
        with path.open("rb") as file:
            _, size = _directory(file)
        if size > SMALL_DIRECTORY:
            return []
        with zipfile.ZipFile(path) as opened:
            return [_below_root(name) for name in opened.namelist()]
    except (InvalidInput, *_UNREADABLE):
        # The runner looks again, finds the same, and says what it is.
        return []


def refuse_programs(members: Iterable[str]) -> None:
    """Refuse archives that hold code.

    Args:
        members: names below the root folder.

    Raises:
        InvalidInput: ``exported_program_not_supported``, ``torch_package_not_supported`` or
            ``torchscript_not_supported``.
    """
    found = set(members)
    how = "send the state dict, best as safetensors"
    if found & {"archive_format", "serialized_exported_program.json"}:
        raise InvalidInput(
            "exported_program_not_supported", f"exported programs (.pt2) are not taken; {how}"
        )
    if ".data/extern_modules" in found:
        raise InvalidInput(
            "torch_package_not_supported", f"archives of torch.package are not taken; {how}"
        )
    if "constants.pkl" in found or any(name.startswith("code/") for name in found):
        raise InvalidInput("torchscript_not_supported", f"TorchScript is not taken; {how}")


def check(path: Path) -> Contents:
    """Check the whole archive and return what it holds.

    Raises:
        InvalidInput: with a code of ``archive_*``; as ``refuse_programs``; or
            ``pickle_budget_exceeded`` if ``data.pkl`` is too large.
    """
    try:
        with path.open("rb") as file:
            start, _ = _directory(file)
            with zipfile.ZipFile(file) as opened:
                members = opened.infolist()
                refuse_programs(_below_root(member.filename) for member in members)
                _check_members(members)
                if opened.start_dir != start:
                    _refuse("the archive does not begin at the first byte")
                _check_layout(file, members, start)
                root = _check_names(members)
                pickle = opened.getinfo(f"{root}data.pkl")
                if pickle.file_size > MAX_PICKLE:
                    raise InvalidInput(
                        "pickle_budget_exceeded", f"data.pkl exceeds {MAX_PICKLE} bytes"
                    )
                if opened.testzip() is not None:
                    _refuse("a member's checksum is wrong")
                sizes = Counter(
                    member.file_size
                    for member in members
                    if _below_root(member.filename).startswith("data/")
                )
                return Contents(opened.read(pickle), sizes)
    except _UNREADABLE:
        _refuse("the file is not a readable zip archive")


def _directory(file: BinaryIO) -> tuple[int, int]:
    """Return where the directory begins, and its size; refuse one that is too large to read."""
    size = file.seek(0, 2)
    if size < _END.size:
        _refuse("the file ends within the archive")
    file.seek(size - _END.size)
    magic, _, _, _, count, length, start, comment = _END.unpack(file.read(_END.size))
    if magic != b"PK\x05\x06" or comment:
        _refuse("the file does not end with the directory of an archive")
    at = size - _END.size - _LOCATOR.size
    file.seek(max(at, 0))
    locator = file.read(_LOCATOR.size)
    if at >= 0 and locator.startswith(b"PK\x06\x07"):
        file.seek(_LOCATOR.unpack(locator)[2])
        magic, _, _, _, _, _, _, count, length, start = _END64.unpack(file.read(_END64.size))
        if magic != b"PK\x06\x06":
            _refuse("the large directory is not where it should be")
    if count > MAX_MEMBERS or length > MAX_DIRECTORY:
        raise InvalidInput(
            "archive_too_many_members", f"the archive holds more than {MAX_MEMBERS} members"
        )
    return start, length


def _check_members(members: list[zipfile.ZipInfo]) -> None:
    if len(members) > MAX_MEMBERS:
        raise InvalidInput(
            "archive_too_many_members", f"the archive holds more than {MAX_MEMBERS} members"
        )
    for member in members:
        parts = member.orig_filename.replace("\\", "/").split("/")
        if ".." in parts or parts[0] == "" or ":" in parts[0]:
            _refuse("a member's name leads out of the archive", "archive_path_traversal")
        if stat.S_ISLNK(member.external_attr >> 16):
            _refuse("a member is a link", "archive_path_traversal")
    if len({member.filename for member in members}) != len(members):
        _refuse("two members have the same name", "archive_duplicate_member")
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED:
            _refuse("members must be stored, not compressed", "archive_compressed_member")
        if member.flag_bits not in _FLAGS or member.file_size != member.compress_size:
            _refuse("a member has flags or sizes that torch does not write")


def _check_layout(file: BinaryIO, members: list[zipfile.ZipInfo], start_dir: int) -> None:
    """Refuse members that overlap, that hide bytes between them, or have two names."""
    end = 0
    for member in sorted(members, key=lambda each: each.header_offset):
        if not end <= member.header_offset <= end + _MAX_GAP * (end > 0):
            _refuse("members overlap, or there are bytes between them")
        file.seek(member.header_offset)
        magic, _, flags, method, _, _, _, packed, size, name, extra = _LOCAL.unpack(
            file.read(_LOCAL.size)
        )
        called = file.read(name).decode("utf-8")
        told = {packed, size} <= {0, member.file_size, 0xFFFFFFFF}
        alike = (flags, method, called) == (member.flag_bits, 0, member.orig_filename)
        if magic != b"PK\x03\x04" or not (alike and told):
            _refuse("a member is described in two different ways")
        end = member.header_offset + _LOCAL.size + name + extra + member.file_size
    if not end <= start_dir <= end + _MAX_GAP:
        _refuse("the members do not end where the directory begins")


def _check_names(members: list[zipfile.ZipInfo]) -> str:
    """Return the root folder with its slash; refuse members that torch does not write."""
    roots = {member.filename.partition("/")[0] for member in members}
    below = {_below_root(member.filename) for member in members}
    if len(roots) != 1 or "data.pkl" not in below:
        _refuse("the archive does not hold exactly one data.pkl in one folder")
    if not all(_MEMBER.fullmatch(name) for name in below):
        _refuse("the archive holds a member that torch.save does not write")
    return f"{roots.pop()}/"


def _below_root(name: str) -> str:
    return name.partition("/")[2]


def _refuse(detail: str, code: str = "archive_invalid") -> NoReturn:
    raise InvalidInput(code, detail)
