"""The page of results: verdicts first, then tables, pictures, and what is missing."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks.papers import cells as measured
from benchmarks.papers.cells import RETRAIN, SPECIAL, Cell, Cells, Job
from benchmarks.papers.claims import CLAIMS, MEASURES, Result, judged, spread, step_cost
from benchmarks.papers.plan import PAPERS, SEEDS, shown
from benchmarks.papers.scenarios import IMP_ROUNDS, SPARSITY
from benchmarks.scales import SCALE


def results(cells: Cells, surgery: Mapping[str, Any] | None) -> list[Result]:
    """Judge every claim, that on the cost of a step included."""
    return [*(judged(claim, cells, SEEDS) for claim in CLAIMS), step_cost(surgery)]


def page(cells: Cells, found: Sequence[Result], drawn: Mapping[str, str], todo: list[Job]) -> str:
    """Return the whole page.

    Args:
        cells: what is measured.
        found: the claims, judged.
        drawn: paper -> file name of its picture.
        todo: what is missing.
    """
    scale = SCALE.get()
    meaning = (measured.__doc__ or "").split("\n\n")[1].replace("\n", " ")
    lines = [
        "# The claims of the four papers, measured",
        "",
        f"`python -m benchmarks.papers{scale.option}`",
        "",
        f"CIFAR-10, {scale.records} records; {scale.says} that memorises them, "
        "and a small vision transformer; sub-classes are forgotten from networks of five "
        f"super-classes; sparse is {SPARSITY:.0%} by magnitude, in {IMP_ROUNDS} rounds, each "
        "trained again from the start; its oracle has the parent's mask, which was made with the "
        "forget set, so there it is no model that never saw it. Seed of "
        f"parent, order and method alike. {meaning.strip()} Gaps are to the mean oracle, on "
        "average over UA, RA, TA and MIA, in percent points. Mean and standard deviation over "
        f"seeds. Backdoor and transfer train for {scale.short} epochs. Poison is forgotten for the "
        "purpose of poison removal, which changes when a method stops; none of those measured on "
        "it stops early, so that the figures are the same for any purpose. Options of the methods "
        "are in `benchmarks/papers/cells.py`; the price of l1-sparse is "
        f"{scale.price}; where a method failed, the figures are the parent's. "
        f"Hardware: {'; or '.join(hardware(cells.values())) or '-'}.",
        "",
        f"Missing cells: {len(todo)}{' (`--list` names them)' if todo else ''}.",
        "",
        "| claim | measured | verdict |",
        "|---|---|---|",
        *(f"| {each.says} | {each.line} | {_strong(each.verdict)} |" for each in found),
        "",
    ]
    for name, paper in PAPERS.items():
        lines += [f"## {paper.title}", ""]
        if name in drawn:
            lines += [f"![{paper.title}]({drawn[name]})", ""]
        for scenario, methods in shown(paper):
            lines += _table(cells, scenario, methods)
        if name == "applications":
            lines += _transfers(cells)
    return "\n".join(lines)


def hardware(cells: Iterable[Cell]) -> list[str]:
    """Return the machines that cells were measured on, which may have taken turns."""
    return sorted({cell["hardware"] for cell in cells})


def _strong(verdict: str) -> str:
    return verdict if verdict == "reproduced" else f"**{verdict}**"


def of(cells: Cells, scenario: str, method: str) -> list[Cell]:
    """Return the cells of all seeds that are there."""
    wanted = (cells.get((scenario, method, seed)) for seed in SEEDS)
    return [cell for cell in wanted if cell is not None]


def _table(cells: Cells, scenario: str, methods: list[str]) -> Iterator[str]:
    if not any(of(cells, scenario, method) for method in methods):
        return
    scale, poisoned = SCALE.get(), scenario.startswith("backdoor")
    extra = (" ASR |" if poisoned else "") + f" {scale.time} s |"
    yield f"**{scenario}**"
    yield ""
    yield f"| method | seeds | UA | RA | TA | MIA | gap | AUC |{extra} v. retrain |"
    yield "|---|---|---|---|---|---|---|---|---|---|" + "---|" * poisoned
    gold = of(cells, scenario, RETRAIN)
    for method in methods:
        found = of(cells, scenario, method)
        if not found:
            continue
        columns = [_name(scenario, method, found), str(len(found))]
        columns += [spread([100 * cell[m] for cell in found]) for m in MEASURES]
        columns.append(spread(gaps(found, gold)) if gold else "-")
        columns += [spread([100 * cell[m] for cell in found]) for m in ("AUC", *["ASR"] * poisoned)]
        seconds = statistics.fmean(cell[scale.clock] for cell in found)
        columns.append(f"{seconds:.0f}")
        against = statistics.fmean(cell[scale.clock] for cell in gold) if gold else 0.0
        columns.append(f"{seconds / against:.2f}" if against else "-")
        yield f"| {' | '.join(columns)} |"
    yield ""


def gaps(found: Sequence[Cell], gold: Sequence[Cell]) -> list[float]:
    """Average gap of every cell to the mean oracle, in points."""
    means = {m: statistics.fmean(cell[m] for cell in gold) for m in MEASURES}
    return [100 * statistics.fmean(abs(cell[m] - means[m]) for m in MEASURES) for cell in found]


def _name(scenario: str, method: str, found: Sequence[Cell]) -> str:
    notes = {cell["failure"] for cell in found if cell["failure"]}
    special = SPECIAL.get((scenario, method), {})
    notes |= {", ".join(f"{key} {value}" for key, value in special.items())} - {""}
    return f"{method} ({'; '.join(sorted(notes))})" if notes else method


def _transfers(cells: Cells) -> Iterator[str]:
    found = of(cells, "transfer", "l1-sparse")
    if not found:
        return
    scale = SCALE.get()
    yield "**transfer**: probe accuracy on four classes, of features learned on the other six"
    yield ""
    head = ["seed", "dropped", "before", "unlearned", "retrained"]
    head += [f"{scale.time} s ranking", "unlearning", "retraining"]
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for cell in found:
        accuracies = (f"{100 * cell[name]:.1f}" for name in ("before", "unlearned", "retrained"))
        spent = (
            f"{cell[f'{name} {scale.clock}']:.0f}" for name in ("ranking", "unlearned", "retrained")
        )
        dropped = ", ".join(map(str, cell["dropped"]))
        yield f"| {' | '.join((str(cell['seed']), dropped, *accuracies, *spent))} |"
    yield ""
