"""Bytes on disk."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from app.store.blobs import Blobs


@pytest.mark.parametrize(
    "key",
    ["", "..", "a/../b", "/etc/passwd", "a//b", "a/", ".hidden", "a\x00b", "a\\b", "a/..", "~"],
)
def test_a_key_cannot_lead_out(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match="blob key"):
        Blobs(tmp_path).path(key)


def test_adopted_bytes_move_and_go(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    file = blobs.scratch() / "upload"
    file.write_bytes(b"abc")
    blobs.adopt(file, "ten_1/uploads/u-1.bin")
    assert not file.exists()
    assert blobs.path("ten_1/uploads/u-1.bin").read_bytes() == b"abc"
    ((key, changed_at),) = blobs.keys()
    assert key == "ten_1/uploads/u-1.bin"
    assert changed_at > 0
    for _ in range(2):
        blobs.delete("ten_1/uploads/u-1.bin")
        assert not blobs.exists("ten_1/uploads/u-1.bin")


def test_scratch_is_private_and_new(tmp_path: Path) -> None:
    one, other = Blobs(tmp_path).scratch(), Blobs(tmp_path).scratch()
    assert one != other
    assert stat.S_IMODE(one.stat().st_mode) == 0o700
