"""The corpus of bad input: every row has a test that carries its name."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROWS = {"A": 28, "B": 30, "C": 25, "D": 12, "E": 22, "F": 20, "G": 17, "H": 15}
LATER = {"F15", "F16", "G10", "G13", "G14", "H5", "H6", "H7", "H8"}
"""Rows of what is not built: holds, signed links, tokens, four eyes, and calls to hooks."""

_ID = re.compile(r"(?:test_)?([A-H]\d+)(?:[-_].*)?")


def names(tree: ast.Module) -> Iterator[str]:
    """Names of tests, and what they are parametrized with: texts, and keys of tables."""
    tests = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]
    yield from (test.name for test in tests)
    used = [node for test in tests for each in test.decorator_list for node in ast.walk(each)]
    yield from _texts(used)
    tables = {node.id for node in used if isinstance(node, ast.Name)}
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(each, ast.Name) and each.id in tables for each in targets):
            for table in ast.walk(node):
                if isinstance(table, ast.Dict):
                    yield from _texts(table.keys)


def _texts(nodes: Iterable[ast.AST | None]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def rows(source: str) -> set[str]:
    """Rows that a test of this file carries in its name, or in that of its parameters."""
    matches = map(_ID.fullmatch, names(ast.parse(source)))
    return {match[1] for match in matches if match}


@cache
def all_rows() -> set[str]:
    others = set(Path(__file__).parent.rglob("test_*.py")) - {Path(__file__)}
    return {row for path in others for row in rows(path.read_text())}


@pytest.mark.parametrize("section", ROWS)
def test_every_row_has_a_test(section: str) -> None:
    wanted = {f"{section}{number}" for number in range(1, ROWS[section] + 1)}
    assert wanted - all_rows() - LATER == set()


def test_a_literal_is_no_test() -> None:
    source = """
TABLE = {"A1-x": one(dtype="F7")}
UNUSED = {"A2": 1}
@pytest.mark.parametrize("row", TABLE)
def test_rows(row): assert row != "A3"
@pytest.mark.parametrize("row", [1], ids=["A4"])
def test_A5_more(row): pass
def A6_none(): pass
"""
    assert rows(source) == {"A1", "A4", "A5"}
