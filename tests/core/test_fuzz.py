"""Good files with random damage: a few hundred every day, ``make mutations`` for 20 000.

The seed of a file is in the message of the failing test.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from benchmarks import tables

from . import mutations
from .mutations import BATCH, READERS, Tally, try_all, try_batch

EVERYDAY = 60


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("start", range(0, EVERYDAY, BATCH))
@pytest.mark.parametrize("name", READERS)
def test_damaged_files(tmp_path: Path, name: str, start: int) -> None:
    tally = try_batch(name, start, tmp_path)
    assert not tally.broken, "\n".join(tally.broken)
    assert tally.taken + tally.refused == tally.files == BATCH
    assert tally.refused, "nothing was damaged"


def crashing(name: str, start: int) -> Tally:
    """Stands in for a reader whose library crashes on one batch."""
    if start == BATCH:
        os.abort()
    return Tally(BATCH, taken=1, refused=BATCH - 1)


@pytest.mark.slow
def test_a_crash_is_counted_and_the_rest_is_read() -> None:
    found = try_all([("png", 0), ("png", BATCH), ("png", 2 * BATCH)], crashing)
    assert found == {"png": Tally(3 * BATCH, 2, 2 * BATCH - 2, ["png-20 to 39: crashed"])}


def test_another_error_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reader(_: object, path: Path) -> None:
        if path.parent.name == "png-3":
            raise ValueError(path.name)

    monkeypatch.setitem(READERS, "png", reader)
    tally = try_batch("png", 0, tmp_path)
    assert (tally.taken, tally.refused, len(tally.broken)) == (BATCH - 1, 0, 1)
    assert tally.broken[0].startswith("png-3: ")


def test_figures_say_what_was_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    about = {"first_seed": 0, "seconds": 3, "commit": "abc", "at": "now"}
    found = {"png": Tally(40, 1, 38, ["png-3: no"]), "parquet": Tally(5000, 0, 5000)}
    mutations._write(found, about)
    raw = json.loads((tmp_path / "mutations.json").read_text())["raw"]
    assert raw["readers"]["png"] == {
        "files": 40,
        "taken": 1,
        "refused": 38,
        "broken": ["png-3: no"],
    }
    page = (tmp_path / "mutations.md").read_text()
    assert "| png: files | >= 5000 | 40 | **missed** |" in page
    assert "| png: broken | 0 | 1 | **missed** |" in page
    assert "| parquet: files | >= 5000 | 5000 | met |" in page
