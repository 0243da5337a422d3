"""Checkpoints as ``torch.save`` writes them, and as nobody should: made in code."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from core import networks

ARCHITECTURE = {"name": "linear", "in_features": 4, "num_classes": 2}


class Call:
    """Pickles as a call of anything."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self._call


def state() -> dict[str, torch.Tensor]:
    """The state dict of ``ARCHITECTURE``."""
    return dict(networks.build(networks.parse(ARCHITECTURE), 0).state_dict())


def saved(what: Any, **options: Any) -> bytes:
    """What ``torch.save`` writes."""
    buffer = io.BytesIO()
    torch.save(what, buffer, **options)
    return buffer.getvalue()


def touching(canary: Path) -> Call:
    """Something that makes a file when it is unpickled."""
    import os

    return Call(os.system, f"touch {canary}")


def archive(
    pickled: bytes | None = b"\x80\x02}.", *more: tuple[str, bytes], compressed: bool = False
) -> bytes:
    """A zip of this ``data.pkl`` and these members, in a folder as torch has it."""
    buffer = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(buffer, "w", kind) as file:
        if pickled is not None:
            file.writestr("archive/data.pkl", pickled)
            file.writestr("archive/version", b"3\n")
        for name, content in more:
            file.writestr(name, content)
    return buffer.getvalue()


def linked() -> bytes:
    """An archive with a symbolic link."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data.pkl", b"\x80\x02}.")
        info = zipfile.ZipInfo("archive/data/0")
        info.external_attr = 0o120777 << 16
        file.writestr(info, b"/etc/passwd")
    return buffer.getvalue()


def crowded(count: int) -> bytes:
    """An archive whose directory says that it has so many members."""
    data = bytearray(archive())
    data[-14:-10] = struct.pack("<2H", min(count, 0xFFFF), min(count, 0xFFFF))
    if count < 0xFFFF:
        return bytes(data)
    start = struct.unpack("<L", data[-6:-2])[0]
    length = struct.unpack("<L", data[-10:-6])[0]
    end = len(data) - 22
    large = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, length, start)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, end, 1)
    return bytes(data[:end]) + large + locator + bytes(data[end:])


def patched(data: bytes, old: bytes, new: bytes, times: int = -1) -> bytes:
    """The same bytes with a piece replaced, which must be there."""
    assert old in data
    return data.replace(old, new, times)


def repickled(old: bytes, new: bytes) -> bytes:
    """A checkpoint whose pickle had a piece replaced, packed anew: its checksums are right."""
    with zipfile.ZipFile(io.BytesIO(saved(state()))) as file:
        members = {name.partition("/")[2]: file.read(name) for name in file.namelist()}
    pickled = patched(members.pop("data.pkl"), old, new)
    del members["version"]
    return archive(pickled, *((f"archive/{name}", each) for name, each in members.items()))


def overlapping() -> bytes:
    """Two members whose bytes are the same: a bomb without compression."""
    data = archive(b"\x80\x02}.", ("archive/data/0", b"x" * 100))
    at = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 1)
    return data[: at + 42] + struct.pack("<L", 0) + data[at + 46 :]


def torchscript() -> bytes:
    """What ``torch.jit.save`` writes, by its members."""
    more = [(f"archive/{name}", b"x") for name in ("constants.pkl", "code/__torch__/m.py")]
    return archive(b"\x80\x02}.", *more)


def exported() -> bytes:
    """What ``torch.export.save`` writes, by its members."""
    more = [(f"archive/{name}", b"pt2") for name in ("archive_format", "models/model.json")]
    return archive(None, *more)


def packaged() -> bytes:
    """What ``torch.package`` writes, by its members."""
    more = [(f"archive/{name}", b"") for name in (".data/extern_modules", "m/m.pkl")]
    return archive(None, *more)


def whole_module() -> bytes:
    """A module saved as a whole."""
    return saved(nn.Linear(4, 2))


def many_opcodes(count: int) -> bytes:
    """A pickle that pushes and drops."""
    return archive(b"\x80\x02" + b"N0" * (count // 2) + b"}.")


def aliases(count: int) -> bytes:
    """Many names for one tensor."""
    one = torch.zeros(1 << 18)
    return saved({f"t{number}": one for number in range(count)})


def nested(depth: int) -> bytes:
    """Dictionaries in dictionaries."""
    return archive(b"\x80\x02" + b"}X\x05\0\0\0model" * depth + b"}" + b"s" * depth + b".")


def short_storage() -> bytes:
    """A tensor whose member is shorter than the pickle says."""
    what = state()
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved(what))) as good, zipfile.ZipFile(buffer, "w") as bad:
        for info in good.infolist():
            content = good.read(info)
            name = info.filename
            bad.writestr(name, content[:-4] if name.endswith("data/0") else content)
    return buffer.getvalue()


def item_on_a_list() -> bytes:
    """CVE-2026-24747: an item is set on what is no dictionary."""
    return archive(b"\x80\x02]X\x01\0\0\0aK\x01s.")


def bare(what: Any, protocol: int = 4) -> bytes:
    """A pickle without an archive."""
    return pickle.dumps(what, protocol=protocol)
