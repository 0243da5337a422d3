"""What the demo shows: a live bar, a table per rung, findings as JSON and one picture."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

mpl.use("Agg")
import matplotlib.pyplot as plt  # the backend is chosen first

Json = dict[str, Any]
COLOURS = {"passed": "green", "failed": "red", "inconclusive": "yellow"}
SHOWN = ("forget", "retain", "holdout")


def follow(console: Console, title: str, states: Iterable[Json]) -> Json:
    """Draw a bar from job states until the last one, which is returned."""
    job: Json = {}
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=36),
        TextColumn("{task.percentage:>3.0f} %  {task.fields[phase]}"),
        TimeElapsedColumn(),
        console=console,
    )
    with bar:
        line = bar.add_task(title, total=1.0, phase="")
        for job in states:
            rung = job.get("rung")
            at = f"rung {rung['index'] + 1}/{rung['of']} {rung['method']}, " if rung else ""
            phase = job["phase"] or job["waiting_on"] or ""
            bar.update(line, completed=job["progress"], phase=f"{at}{phase}")
        bar.update(line, completed=1.0, phase=job["status"])
    return job


def show_rung(console: Console, rung: Json) -> None:
    """Print before / after and the gates of one rung."""
    name = rung["unlearner"]["name"]
    console.print(
        f"\n[bold]Rung {rung['index'] + 1}: {name}[/] -> [bold]{rung['status']}[/] "
        f"({rung['reason']}; {rung['seconds']:.1f} s, audits {rung['audit_seconds']:.1f} s)"
    )
    measured = Table("measure", "records", "before", "after", box=None, padding=(0, 2))
    for label, count, before, after in comparisons(rung):
        measured.add_row(label, str(count), f"{before:.3f}", f"{after:.3f}")
    if measured.row_count:
        console.print(measured)
    gates = Table("gate", "value", "90 % interval", "allowed", "verdict", box=None, padding=(0, 2))
    for gate in rung["gates"]:
        colour = COLOURS[gate["verdict"]]
        verdict = f"[{colour}]{gate['verdict']}[/]"
        mark = " *" if gate["role"] == "reported" else ""
        gates.add_row(
            gate["name"] + mark,
            _number(gate["value"]),
            _range(gate["interval"]),
            _range(gate["band"]),
            verdict,
        )
    if gates.row_count:
        console.print(gates)
        if any(gate["role"] == "reported" for gate in rung["gates"]):
            console.print("  * reported only: an exact rung is not judged by it", style="dim")
    for gate in rung["gates"]:
        if gate["verdict"] != "passed":
            console.print(f"  {gate['name']}: {gate['reason']}", style="dim", highlight=False)


def comparisons(rung: Json) -> list[tuple[str, int, float, float]]:
    """Return (label, records, before, after) of the measures that have both."""
    rows = []
    for finding in rung["findings"]:
        has_both = finding["reference_name"] == "before" and finding["value"] is not None
        whole = finding["scope"] in SHOWN
        if has_both and whole and finding["reference"] is not None:
            label = f"{finding['measure']} on {finding['scope']}"
            rows.append((label, finding["examples"], finding["reference"], finding["value"]))
    return rows


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _bound(value: float) -> str:
    return f"{value:.3f}" if 1e-3 <= abs(value) < 100 or value == 0 else f"{value:.0e}"


def _range(interval: list[float] | None) -> str:
    return "-" if interval is None else " to ".join(_bound(end) for end in interval)


def picture(stories: dict[str, Json], path: Path) -> None:
    """Draw before/after bars and forget-versus-holdout margins of each story's last rung."""
    figure, axes = plt.subplots(len(stories), 2, figsize=(11, 4 * len(stories)), squeeze=False)
    for (title, rung), (bars, scores) in zip(stories.items(), axes, strict=True):
        rows = [row for row in comparisons(rung) if row[0].startswith("accuracy")]
        places = range(len(rows))
        bars.bar([p - 0.2 for p in places], [row[2] for row in rows], 0.4, label="before")
        bars.bar([p + 0.2 for p in places], [row[3] for row in rows], 0.4, label="after")
        bars.set_xticks(list(places), [row[0].removeprefix("accuracy on ") for row in rows])
        bars.set(title=f"{title}: accuracy", ylim=(0, 1.05))
        bars.legend(loc="lower right")
        _histogram(scores, rung["histogram"])
        scores.set_title(f"{title}: margin scores after {rung['unlearner']['name']}")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _histogram(axis: Any, histogram: dict[str, list[float]] | None) -> None:
    """Draw the score densities of one rung on ``axis``."""
    if histogram is None:
        axis.text(0.5, 0.5, "no holdout, no scores", ha="center")
        return
    edges = histogram["edges"]
    for role, style in (("forget_before", ":"), ("forget", "-"), ("holdout", "--")):
        counts = histogram[role]
        total = sum(counts) or 1
        axis.stairs([count / total for count in counts], edges, label=role, linestyle=style)
    axis.set(xlabel="margin (log-odds of the true class)", ylabel="share of records")
    axis.legend()
