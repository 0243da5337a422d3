"""Libraries with known holes read no uploads."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from worker import floors, main, serve

SOLO = SimpleNamespace(pool_cls=SimpleNamespace(__module__="celery.concurrency.solo"))


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    versions: dict[str, str | None] = {}
    real = floors._installed
    monkeypatch.setattr(floors, "_installed", lambda name: versions.get(name, real(name)))
    return versions


def test_what_is_installed_here_is_new_enough() -> None:
    assert floors.fault() is None


def test_every_reader_has_a_floor_in_the_project() -> None:
    assert set(floors.READERS) <= floors._floors().keys()


def test_an_installed_package_knows_the_floors_without_the_project(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    requires = ["torch>=2.11", "pillow<14,>=13", "safetensors (>=0.8)", 'x>=1; extra == "demo"']
    monkeypatch.setattr(floors, "PROJECT", tmp_path / "pyproject.toml")
    monkeypatch.setattr(floors.metadata, "requires", Mock(return_value=requires))
    found = floors._floors()
    assert (found["torch"], found["pillow"], found["safetensors"]) == ("2.11", "13", "0.8")


@pytest.mark.parametrize(
    ("version", "is_fine"),
    [
        ("2.11", True),
        ("2.11.0+cpu", True),
        ("2.13.0a0+git1", True),
        ("10.0", True),
        ("2.10.9", False),
        ("2.9.1+cu128", False),
        (None, False),
    ],
)
def test_versions_are_compared_as_numbers(
    installed: dict[str, str | None],
    monkeypatch: pytest.MonkeyPatch,
    version: str | None,
    is_fine: bool,
) -> None:
    real = floors._floors()
    monkeypatch.setattr(floors, "_floors", lambda: real | {"torch": "2.11"})
    installed["torch"] = version
    assert (floors.fault() is None) == is_fine


def test_no_worker_starts_with_an_old_library(
    installed: dict[str, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed["pillow"] = "12.1.1"
    monkeypatch.setattr(main, "at_head", Mock(side_effect=AssertionError))
    monkeypatch.setattr(serve, "_settings", Mock())
    monkeypatch.setattr(serve.logs, "configure", Mock(side_effect=AssertionError))
    for start in (lambda: main.refuse_to_start(sender=SOLO), serve.main):
        with pytest.raises(SystemExit, match=r"safe: pillow 12\.1\.1 \(at least 13\)"):
            start()
