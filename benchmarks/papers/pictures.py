"""One picture per paper, drawn from the cells that are there."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import matplotlib as mpl

from benchmarks import scales
from benchmarks.papers.cells import BEFORE, RETRAIN, Cells
from benchmarks.papers.claims import MEASURES
from benchmarks.papers.page import gaps, of
from benchmarks.papers.plan import PAPERS, Paper, shown
from benchmarks.scales import SCALE

mpl.use("Agg")
import matplotlib.pyplot as plt  # the backend is chosen first
from matplotlib.patches import Patch

COLOURS = dict(zip(MEASURES, ("#4c72b0", "#55a868", "#dd8452", "#8172b3"), strict=True))
DENSE, SPARSE = "#4c72b0", "#dd8452"


def draw(cells: Cells, folder: Path) -> dict[str, str]:
    """Draw what can be drawn; paper -> file name."""
    drawn = {}
    for name, paper in PAPERS.items():
        applied = name == "applications"
        figure = _applications(cells, paper) if applied else _gaps(cells, paper)
        if figure is None:
            continue
        drawn[name] = f"{scales.results('papers').name}-{name}.png"
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / drawn[name], dpi=110)
        plt.close(figure)
    return drawn


def _gaps(cells: Cells, paper: Paper) -> Any:
    """Bars of the gap to the oracle in its four parts, a dot per seed, and what it cost."""
    panels = []
    for scenario, methods in shown(paper):
        there = [m for m in methods if m != RETRAIN and of(cells, scenario, m)]
        if there and of(cells, scenario, RETRAIN):
            panels.append((scenario, there))
    if not panels:
        return None
    rows, columns = -(-len(panels) // 2), min(2, len(panels))
    most = max(len(methods) for _, methods in panels)
    figure, grid = plt.subplots(
        rows, columns, figsize=(6 * columns, rows * (0.36 * most + 1) + 0.6), squeeze=False
    )
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (scenario, methods) in zip(grid.flat, panels, strict=False):
        _panel(axes, cells, scenario, methods)
    handles = [Patch(color=COLOURS[m], label=m) for m in MEASURES]
    figure.legend(handles=handles, loc="lower center", ncol=4, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.35 / figure.get_figheight(), 1, 1))
    return figure


def _panel(axes: Any, cells: Cells, scenario: str, methods: list[str]) -> None:
    gold = of(cells, scenario, RETRAIN)
    target = {m: statistics.fmean(cell[m] for cell in gold) for m in MEASURES}
    cost = statistics.fmean(cell[SCALE.get().clock] for cell in gold)
    widest = 0.0
    for y, method in enumerate(methods):
        found = of(cells, scenario, method)
        totals, left = gaps(found, gold), 0.0
        for measure in MEASURES:
            away = statistics.fmean(abs(cell[measure] - target[measure]) for cell in found)
            width = 100 * away / len(MEASURES)
            axes.barh(y, width, left=left, color=COLOURS[measure], height=0.7)
            left += width
        axes.plot(totals, [y] * len(totals), "k.", markersize=4)
        end = max(left, *totals, 0.0)
        widest = max(widest, end)
        share = statistics.fmean(cell[SCALE.get().clock] for cell in found) / cost
        note = f"  {left:.1f}" if method == BEFORE else f"  {left:.1f} at {share:.2f} of the cost"
        axes.text(end, y, note, va="center", fontsize=7)
    axes.set_yticks(range(len(methods)), methods, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.45 * widest or 1)
    axes.set_title(scenario, fontsize=9)
    axes.set_xlabel("gap to the oracle, points", fontsize=8)
    axes.tick_params(axis="x", labelsize=8)


def _applications(cells: Cells, paper: Paper) -> Any:
    """Attack success and accuracy, dense beside sparse; and probes before and after dropping."""
    methods = [BEFORE, *paper.methods, RETRAIN]
    sides = dict(zip(paper.scenarios, ((DENSE, "dense"), (SPARSE, "sparse")), strict=True))
    poisoned = any(of(cells, side, m) for side in sides for m in methods)
    found = of(cells, "transfer", "l1-sparse")
    if not poisoned and not found:
        return None
    figure, panels = plt.subplots(1, 3, figsize=(13, 3.8))
    for axes, measure, title in zip(
        panels, ("ASR", "TA"), ("attack success, %", "accuracy without the patch, %"), strict=False
    ):
        for shift, (side, (colour, label)) in zip((-0.2, 0.2), sides.items(), strict=True):
            for x, method in enumerate(methods):
                values = [100 * cell[measure] for cell in of(cells, side, method)]
                if values:
                    axes.bar(x + shift, statistics.fmean(values), 0.38, color=colour)
                    axes.plot([x + shift] * len(values), values, "k.", markersize=4)
            axes.bar(0, 0, color=colour, label=label)
        axes.set_xticks(range(len(methods)), methods, fontsize=8)
        axes.set_title(title, fontsize=9)
        axes.set_ylim(0, 105)
    panels[0].legend(fontsize=8, frameon=False)
    steps = ("before", "unlearned", "retrained")
    for cell in found:
        panels[2].plot(steps, [100 * cell[s] for s in steps], "o-", label=f"seed {cell['seed']}")
    panels[2].set_title("probe on other classes, % right", fontsize=9)
    if found:
        panels[2].legend(fontsize=8, frameon=False)
    figure.tight_layout()
    return figure
