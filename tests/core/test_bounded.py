"""Rows C and E once more: what refusing a hostile file may take of memory and time."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from . import bounded, test_convert, test_ingest
from . import checkpoints as made

MOST_BYTES = 2**30
MOST_SECONDS = 10.0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]


def assert_bounded(kind: str, source: Path, out: Path, code: str | None) -> None:
    out.mkdir()
    found = bounded.read(kind, source, out)
    assert found.code == code
    assert found.peak_bytes <= MOST_BYTES
    assert found.processor_seconds < MOST_SECONDS


@pytest.mark.parametrize("row", test_convert.ROWS)
def test_a_bad_checkpoint_takes_little(tmp_path: Path, row: str) -> None:
    make, code = test_convert.ROWS[row]
    (tmp_path / "upload").write_bytes(make(tmp_path / "canary"))
    assert_bounded("convert", tmp_path / "upload", tmp_path / "out", code)
    assert not (tmp_path / "canary").exists()
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("row", test_ingest.ROWS)
def test_a_bad_dataset_takes_little(tmp_path: Path, row: str) -> None:
    make, code = test_ingest.ROWS[row]
    source = make()
    if isinstance(source, bytes):
        (tmp_path / "upload").write_bytes(source)
    else:
        pq.write_table(source, tmp_path / "upload")
    assert_bounded("ingest", tmp_path / "upload", tmp_path / "out", code)


def test_what_a_process_takes_is_seen(tmp_path: Path) -> None:
    (tmp_path / "upload").write_bytes(made.saved(made.state()))
    (tmp_path / "out").mkdir()
    found = bounded.read("convert", tmp_path / "upload", tmp_path / "out")
    assert found.code is None
    assert 2**24 < found.peak_bytes <= MOST_BYTES
    assert found.processor_seconds > 0
