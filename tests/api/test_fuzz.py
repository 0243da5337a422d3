"""Calls made up from the OpenAPI document: a few every day, ``make fuzz`` for all of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fastapi import FastAPI

from app.settings import Settings
from benchmarks import tables

from . import fuzz as fuzzing
from .fuzz import furnish, fuzz

RUN = {
    "calls": 60_000,
    "calls_with_a_key": 59_000,
    "by_status": {"200": 59_000, "401": 1000},
    "failures": [],
    "errors": [],
    "seed": 1,
    "seconds": 10,
    "commit": "abc",
    "at": "now",
    "hardware": "this",
}


def test_a_few_made_up_calls(api: FastAPI, settings: Settings) -> None:
    report = fuzz(api, furnish(api, settings).key, 1, 1, ("fuzzing",))
    assert not report.failures, [*report.failures.values()]
    assert not report.errors, report
    assert report.num_calls >= 60
    assert max(report.calls) < 500


def test_figures_are_kept_for_each_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzzing, "RESULTS", tmp_path)
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    fuzzing._write("SQLite", RUN)
    short = {"calls_with_a_key": 300, "by_status": {"200": 298, "503": 2}, "failures": ["one"]}
    fuzzing._write("PostgreSQL", RUN | short)
    written = json.loads((tmp_path / "fuzz.json").read_text())
    assert written["raw"] == {"PostgreSQL": RUN | short, "SQLite": RUN}
    page = (tmp_path / "fuzz.md").read_text()
    assert "| SQLite: calls with a key | >= 50000 | 59000 | met |" in page
    assert "| PostgreSQL: calls with a key | >= 50000 | 300 | **missed** |" in page
    assert "| PostgreSQL: answers of 500 and above | 0 | 2 | **missed** |" in page
    assert "| PostgreSQL: checks that broke | 0 | 1 | **missed** |" in page
