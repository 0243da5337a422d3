"""What the four papers claim, measured at the scale of a small machine or, on a GPU, as published.

Every claim names the cells it rests on; what is there is skipped, so a run may stop anywhere. The
claims come first, seed by seed, then baselines that no claim needs. At 800 images trained a second,
as on one core, a seed of the claims should take about 70 minutes (33 of them trainings, three of
those shared with ``benchmarks.oracles`` and ``benchmarks.gates``), a seed of the rest about 16.

    python -m benchmarks.papers [--data FOLDER] [--paper NAME] [--seeds 3] [--minutes M] [--list]
        [--scale full]
"""

from __future__ import annotations

import json
import time

from benchmarks import cifar, scales, study
from benchmarks.hardware import RESULTS, need, parser
from benchmarks.papers.cells import Job, read
from benchmarks.papers.page import page, results
from benchmarks.papers.pictures import draw
from benchmarks.papers.plan import PAPERS, SEEDS, jobs, shown


def main() -> None:
    """Measure what is missing within the time, judge the claims, and write page and pictures."""
    options = parser(__doc__)
    options.add_argument("--paper", choices=[*PAPERS], action="append", help="these alone")
    options.add_argument("--seeds", type=int, choices=SEEDS, default=len(SEEDS))
    options.add_argument("--minutes", type=float, default=1e9, help="start no cell after these")
    options.add_argument("--list", action="store_true", help="name what is missing, and end")
    args = scales.parse(options)
    wanted = [job for job in jobs(SEEDS[: args.seeds]) if _belongs(job, args.paper)]
    if args.list:
        print("\n".join(job.path.stem for job in wanted if not job.path.exists()) or "nothing")
        return
    need(args.data, cifar.TRAIN, cifar.TEST)
    end = time.monotonic() + 60 * args.minutes
    for job in wanted:
        if not job.path.exists() and time.monotonic() < end:
            study.cell(job.path, lambda job=job: job.run(args.data))  # type: ignore[misc]
    write()


def write() -> None:
    """Write page and pictures from the cells that are there."""
    cells = read(jobs())
    surgery = RESULTS / "surgery.json"
    found = results(cells, json.loads(surgery.read_text()) if surgery.exists() else None)
    todo = [job for job in jobs() if not job.path.exists()]
    text = page(cells, found, draw(cells, RESULTS), todo)
    (RESULTS / f"{scales.results('papers').name}.md").write_text(text)
    for each in found:
        print(f"{each.verdict}: {each.says}\n    {each.line}")
    print(f"missing cells: {len(todo)} of {len(jobs())}")


def _belongs(job: Job, papers: list[str] | None) -> bool:
    if not papers:
        return True
    parts = {(s, m) for name in papers for s, methods in shown(PAPERS[name]) for m in methods}
    in_transfer = job.scenario == "transfer" and "applications" in papers
    return (job.scenario, job.method) in parts or in_transfer


if __name__ == "__main__":
    main()
