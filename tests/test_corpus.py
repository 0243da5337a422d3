"""The corpus of bad input: every row has a test that carries its name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROWS = {"B": 30, "C": 25, "D": 12, "E": 22}
NOT_BUILT = {"D8", "D12"}
"""Quotas of tenants, and workers that say how much memory their accelerators have."""

_ID = re.compile(r'"([B-E]\d+)(?:-[^"]*)?"|def test_([B-E]\d+)_')


@pytest.mark.parametrize("section", ROWS)
def test_every_row_has_a_test(section: str) -> None:
    others = set(Path(__file__).parent.rglob("test_*.py")) - {Path(__file__)}
    sources = [path.read_text() for path in others]
    found = {first or second for text in sources for first, second in _ID.findall(text)}
    wanted = {f"{section}{number}" for number in range(1, ROWS[section] + 1)}
    assert wanted - found - NOT_BUILT == set()
