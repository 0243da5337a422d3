"""What a runner is lent."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from worker.parcels import lend
from worker.supervisor import RunnerDied


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("store", "inbox"):
        (tmp_path / name).mkdir()
    return tmp_path / "store", tmp_path / "inbox"


def order(**arguments: Any) -> dict[str, Any]:
    return {"kind": "k", "threads": 0, "arguments": arguments}


def test_only_what_the_order_names_is_lent(places: tuple[Path, Path]) -> None:
    store, inbox = places
    for name in "abcd":
        (store / name).write_text(name)
    given = order(
        out=str(store),
        weights=str(store / "a"),
        dataset=str(store / "b"),
        holdout=str(store / "b"),
        oracles=[str(store / "c")],
        importance=None,
        policy=str(store / "d"),
    )
    lent = lend(given, inbox)["arguments"]
    assert lent["out"] == given["arguments"]["out"]
    assert lent["policy"] == given["arguments"]["policy"]
    assert lent["importance"] is None
    assert lent["dataset"] == lent["holdout"], "one file stays one"
    read = [Path(path).read_text() for path in (lent["weights"], lent["dataset"], *lent["oracles"])]
    assert read == ["a", "b", "c"]
    assert {path.read_text() for path in inbox.iterdir()} == {"a", "b", "c"}


def test_files_of_another_disk_are_copied(
    places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, inbox = places
    (store / "a").write_text("a")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, "another disk")

    monkeypatch.setattr(os, "link", refuse)
    lent = lend(order(source=str(store / "a")), inbox)["arguments"]
    assert Path(lent["source"]).read_text() == "a"


def test_a_file_that_is_gone_is_not_hidden(places: tuple[Path, Path]) -> None:
    store, inbox = places
    with pytest.raises(RunnerDied, match="not in the storage"):
        lend(order(source=str(store / "gone")), inbox)
