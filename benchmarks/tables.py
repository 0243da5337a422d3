"""How a figure is written down: one Markdown table and one JSON file per benchmark."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.hardware import RESULTS, describe


@dataclass(frozen=True)
class Row:
    """One line of a result table.

    Args:
        what: what was measured.
        measured: the figure with its unit.
        asked: what it has to reach; empty where nothing is asked.
        met: whether it does; None where nothing is asked.
    """

    what: str
    measured: str
    asked: str = ""
    met: bool | None = None

    @property
    def verdict(self) -> str:
        """``met``, ``missed`` or a dash."""
        return "-" if self.met is None else ("met" if self.met else "**missed**")


def write(
    name: str, title: str, command: str, notes: Sequence[str], rows: Sequence[Row], raw: Any
) -> None:
    """Write ``results/<name>.md`` and ``results/<name>.json`` and print the table.

    Args:
        name: file name without ending.
        title: heading.
        command: what reproduces it.
        notes: what it is compared with and how it was measured, one paragraph each.
        rows: the table.
        raw: every single measurement, for the JSON file.
    """
    load = os.getloadavg()[0]
    lines = [f"# {title}", "", f"`{command}`", ""]
    for note in notes:
        lines += [note, ""]
    niceness = f", niceness {os.nice(0)}" if os.nice(0) else ""
    lines += [f"Hardware: {describe()}; load average at the end {load:.1f}{niceness}.", ""]
    lines += ["| what | asked | measured | verdict |", "|---|---|---|---|"]
    lines += [f"| {r.what} | {r.asked or '-'} | {r.measured} | {r.verdict} |" for r in rows]
    RESULTS.mkdir(exist_ok=True)
    page = RESULTS / f"{name}.md"
    page.write_text("\n".join(lines) + "\n")
    (RESULTS / f"{name}.json").write_text(
        json.dumps({"hardware": describe(), "load": load, "raw": _short(raw)}) + "\n"
    )
    print(page.read_text(), flush=True)


def _short(raw: Any) -> Any:
    """Keep four digits of every number."""
    if isinstance(raw, dict):
        return {key: _short(value) for key, value in raw.items()}
    if isinstance(raw, list):
        return [_short(value) for value in raw]
    return float(f"{raw:.4g}") if isinstance(raw, float) else raw


def quantile(values: Sequence[float], share: float) -> float:
    """Smallest value that at least ``share`` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-int(share * len(ordered) * 1000) // 1000) - 1)]


def median(values: Sequence[float]) -> float:
    """Median, for ratios and times measured in alternating rounds."""
    return statistics.median(values)
