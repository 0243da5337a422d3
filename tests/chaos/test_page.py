"""What is told of portions: those that failed are seen, and nothing is told that nobody counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.chaos import full
from tests.chaos.page import added_up, page, summary


def portion(*, passed: bool = True, said: tuple[str, ...] = (), **counts: float) -> dict[str, Any]:
    return {
        "first": 10,
        "strikes": 5,
        "passed": passed,
        "seconds": 1.5,
        "counts": counts,
        "said": [*said],
        "machine": "m",
        "commit": "abc1234",
        "at": "2026-11-21T21:02:47+00:00",
    }


def test_a_failed_portion_stands_on_top_with_what_it_said() -> None:
    failed = portion(passed=False, said=("E  lost", "x" * 1000))
    found = summary("T3_sqlite", 10, [failed, portion(requests=3, lost=0)])
    assert (found["survived"], found["complete"], found["failed_portions"]) == (5, False, 1)
    assert [*found].index("failed") < [*found].index("portions")
    assert found["failed"][0]["said"] == failed["said"]
    assert "0cae0cb" in found["failed"][0]["cause"], found
    told = page([found], {"T2_sqlite": 250})
    assert "| 10 | 5 | **1** | requests 3, lost 0 | abc1234 | m |" in told
    assert "### T3_sqlite, 5 from 10 on, at abc1234, 2026-11-21T21:02:47+00:00" in told
    assert "    E  lost" in told
    assert "| 250 | 0 |" in told


def test_a_failure_that_nobody_looked_into_says_so() -> None:
    found = summary("T1_sqlite", 10, [portion(passed=False)])
    assert "Cause: not looked into yet." in page([found], {})


def test_losses_count_only_where_requests_were_counted() -> None:
    constant = portion(drains=5, lost=0, applied_twice=0)
    found = summary("T7_sqlite", 10, [constant])["counts_of_passed_portions"]
    assert found == {"drains": 5}


def test_the_longest_and_percentiles_are_not_added_up() -> None:
    first = {"kills": 1, "longest_drain_seconds": 3.0, "recovery_p95_seconds": 2.0}
    second = {"kills": 2, "longest_drain_seconds": 1.0, "recovery_p95_seconds": 4.0}
    assert added_up([first, second]) == {
        "kills": 3,
        "longest_drain_seconds": 3.0,
        "recovery_p95_seconds": 4.0,
    }


@pytest.mark.parametrize(
    ("cell", "counts", "told"),
    [
        ("T1_sqlite", {"late_recoveries": 2, "recoveries": 20}, "0.05 | 0.05 | 10 | kept |"),
        ("T1_sqlite", {"late_recoveries": 3, "recoveries": 20}, "0.05 | 0.075 | 10 | **not kept**"),
        (
            "T4_postgres",
            {"post_p99_ms_without_broker": 30.0, "post_p99_ms_with_broker": 20.0},
            "1.2 | 1.25 | 10 | **not kept** |",
        ),
        ("T5_postgres", {"longest_return_seconds": 9.5}, "10 | 9.5 | 10 | kept |"),
        ("T5_postgres", {}, "10 | 1 | 5 | kept |"),
    ],
)
def test_promises_are_held_against_the_portions_that_measured_them(
    cell: str, counts: dict[str, float], told: str
) -> None:
    quiet = {
        "T1_sqlite": {"late_recoveries": 0, "recoveries": 20},
        "T4_postgres": {"post_p99_ms_without_broker": 20.0, "post_p99_ms_with_broker": 20.0},
        "T5_postgres": {"longest_return_seconds": 1.0},
    }
    lost = portion(passed=False, **quiet[cell])
    found = summary(
        cell, 20, [portion(recoveries=9), lost, portion(**quiet[cell]), portion(**counts)]
    )
    assert told in page([found], {})


def test_what_was_not_measured_is_not_kept() -> None:
    told = page([summary("T7_sqlite", 10, [portion(drains=5)]), summary("T3_sqlite", 10, [])], {})
    assert "| T7_sqlite | seconds until a service has ended | 60 | - | 0 | not measured |" in told
    assert told.count("T3_sqlite") == 1, "nothing but its row"


def test_a_clone_adds_what_only_it_has_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known, new = portion(requests=3), portion(requests=4) | {"first": 15}
    bare = {key: value for key, value in known.items() if key != "machine"}
    for root, found in (("here", [known]), ("clone", [bare, new])):
        monkeypatch.setattr(full, "ROOT", tmp_path / root)
        full.write("T3_sqlite", found)
    monkeypatch.setattr(full, "ROOT", tmp_path / "here")
    full.join("T3_sqlite", [tmp_path / "clone"])
    joined = json.loads((tmp_path / "here" / full.RESULTS / "T3_sqlite.json").read_text())
    assert joined["survived"] == 10
    assert [each["first"] for each in joined["portions"]] == [10, 15]
    assert "| 100 | 10 | 0 | requests 7 |" in (tmp_path / "here" / full.PAGE).read_text()


def test_reasons_name_no_folder_of_the_machine() -> None:
    said = 'E     File "/home/x/site-packages/psycopg/_connection.py", line 3\nE   other'
    assert full.reasons(said) == ['E     File "psycopg/_connection.py", line 3', "E   other"]
