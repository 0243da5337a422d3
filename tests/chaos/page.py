"""``benchmarks/results/chaos.md``: what of ``make chaos-full`` was run, and all that failed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

Json = dict[str, Any]
Counts = Mapping[str, float]

_LARGEST = re.compile(r"^longest_|_p[0-9]+_")
"""What is not added up: of all portions the largest counts."""
_LINE = 300
"""Characters of a reason; the JSON file holds all that was kept."""

WHAT = {
    "T1": "the service or its worker killed in the middle of jobs",
    "T2": "a death at each named place of a job's way",
    "T3": "the API killed during bursts of requests",
    "T4": "the broker killed, emptied, muted",
    "T5": "the database stopped at once under load",
    "T6": "workers frozen beyond their lease",
    "T7": "the service ended in the middle of a long job",
    "T8": "messages doubled, forged, malformed, pickled",
    "T10": "disks without room; as `volume` that of the database",
    "F6": "one of two workers killed, with a bucket and leases as shipped",
    "T11": "each call to the database, and on SQLite each call to the blobs, fails once",
    "T12": "simulated schedules",
    "T25": "every order of two sessions; on PostgreSQL also both open at once",
}
"""Number of a test -> what is done to the service."""

_T3 = (
    "the weighted accuracy of a gate exceeded 1 by rounding, and the square root of a negative "
    "number failed the job with all its requests; put right by 0cae0cb"
)
_T8 = (
    "the worker ended on a message that Celery cannot read; put right by 868ebfd, and for Redis by "
    "71e41a5"
)
CAUSES = {
    "T3_sqlite 2026-11-21T21:02:47+00:00": _T3,
    "T3_postgres 2026-11-21T21:14:39+00:00": f"not kept with the portion, which says only that "
    f"acknowledged requests were not completed; by test, commit and place most likely that of "
    f"T3_sqlite: {_T3}",
    "T4_postgres 2026-11-21T18:29:44+00:00": "not found: five minutes after all jobs had "
    "ended, rows, blobs and trash still differed; the portion did not keep which. Later portions "
    "passed; 7b97b56 has such a failure show the worker's log",
    "T4_postgres 2026-11-21T18:46:18+00:00": "not found: an acknowledged request was not "
    "completed; the portion did not keep which or why. Later portions passed; bfbae72 has such a "
    "failure name the rows. The rounding that 0cae0cb put right leaves this sign, too",
    "T5_postgres 2026-11-21T21:01:23+00:00": "a worker that was started while the database was "
    "away ended with exit status 1; put right by 868ebfd",
    "T6_sqlite 2026-11-21T21:59:57+00:00": "the test froze the worker while one of its threads had "
    "SQLite's only lock, so that nobody could go on; since bfeab28 it is frozen again without it",
    "T8_sqlite 2026-11-21T20:59:11+00:00": _T8,
    "T8_postgres 2026-11-21T20:58:53+00:00": _T8,
    "T8_postgres 2026-11-21T22:03:14+00:00": "a message that Celery fails at after it was "
    "acknowledged left the worker at work for ever in its own eyes; put right by e973825",
}
"""Cell and time of a failed portion -> why it failed, as far as it is known."""


@dataclass(frozen=True)
class Promise:
    """A figure that must not exceed a limit.

    Args:
        what: it is.
        most: the limit.
        needs: counts without which a portion tells nothing about it.
        figure: computes it from these counts of all portions, a sequence for each.
    """

    what: str
    most: float
    needs: tuple[str, ...]
    figure: Callable[..., float]


def _share(parts: Sequence[float], wholes: Sequence[float]) -> float:
    return sum(parts) / sum(wholes)


def _typical_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    return median(a / b for a, b in zip(above, below, strict=True))


PROMISES = {
    "T1": Promise(
        "share of recoveries later than lease, sweep interval and 2 s; without the time when no "
        "worker was ready, and when the job was free but the only worker did another",
        0.05,
        ("late_recoveries", "recoveries"),
        _share,
    ),
    "T4": Promise(
        "p99 of a POST while the broker is away over that before; median of the portions",
        1.2,
        ("post_p99_ms_without_broker", "post_p99_ms_with_broker"),
        _typical_ratio,
    ),
    "T5": Promise(
        "seconds until all is back once the database is", 10, ("longest_return_seconds",), max
    ),
    "T7": Promise("seconds until a service has ended", 60, ("longest_drain_seconds",), max),
    "F6": Promise("seconds until a job is taken over", 75, ("longest_takeover_seconds",), max),
}
"""Number of a test -> what is promised beside that nothing is lost."""

NOTES = (
    "Counts are those of the portions that passed; a portion that failed stops before it counts. "
    "What is called longest, and percentiles (`p50`, `p95`, `p99`), are the largest of all "
    "portions; all other counts are sums.",
    "T7 and T12 to 8163597 did not count what was lost or applied twice, so nothing is told of it "
    "here; their assertions held.",
    "T11 to 8163597 and T25 to 8163597 count nothing, and of the calls to the blobs only one was "
    "ever made to fail.",
    "T1: portions that do not tell whom they killed always killed the supervisor alone, and did "
    "not count late recoveries.",
    "T12: schedules have 40 steps or 10. Portions that do not tell how many of each: at 8617c5b "
    "all have 40; at 8163597 those whose first is a multiple of 5000 have 40, all others 10.",
)


def added_up(all_counts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Add counts up by name."""
    total: dict[str, float] = {}
    for counts in all_counts:
        for key, value in counts.items():
            before = total.get(key, 0)
            total[key] = max(before, value) if _LARGEST.search(key) else before + value
    return total


def summary(name: str, asked: int, portions: list[Json]) -> Json:
    """What came out of a cell, with what failed on top.

    Args:
        name: of the cell.
        asked: strikes in all.
        portions: all that were run, each with ``machine``.
    """
    passed = [portion for portion in portions if portion["passed"]]
    failed = [portion for portion in portions if not portion["passed"]]
    survived = sum(portion["strikes"] for portion in passed)
    told = ("first", "strikes", "commit", "at", "said")
    return {
        "cell": name,
        "asked": asked,
        "survived": survived,
        "complete": survived >= asked,
        "failed_portions": len(failed),
        "failed": [
            {key: each[key] for key in told} | {"cause": cause(name, each)} for each in failed
        ],
        "counts_of_passed_portions": added_up(map(_counted, passed)),
        "seconds": round(sum(portion["seconds"] for portion in portions), 1),
        "machine": "; ".join(sorted({portion["machine"] for portion in portions})),
        "portions": portions,
    }


def _counted(portion: Json) -> dict[str, float]:
    """What a portion counted: losses only where it looked at requests at all."""
    counts = portion["counts"]
    told = counts if "requests" in counts else counts.keys() - {"lost", "applied_twice"}
    return {key: value for key, value in counts.items() if key in told}


def cause(name: str, portion: Json) -> str:
    """Why a portion failed."""
    return CAUSES.get(f"{name} {portion['at']}", "not looked into yet")


def page(summaries: list[Json], missing: Mapping[str, int]) -> str:
    """The page as Markdown.

    Args:
        summaries: of the cells that were run.
        missing: name of a cell that was not -> how many strikes are asked.
    """
    rows = [_row(each) for each in summaries]
    rows += [f"| {name} | {_what(name)} | {n} | 0 | - | - | - | - |" for name, n in missing.items()]
    lines = [
        "# Faults in their full number",
        "",
        "`make chaos-full`; written by `python -m tests.chaos.full --page` from the files in "
        "`benchmarks/results/chaos`.",
        "",
        *(line for note in NOTES for line in (note, "")),
        "| cell | what is done | asked | survived | failed portions | counts | commits | machine |",
        "|---|---|---|---|---|---|---|---|",
        *rows,
        "",
        "## Promised figures",
        "",
        "| cell | figure | at most | measured | strikes that measured it | verdict |",
        "|---|---|---|---|---|---|",
        *(line for each in summaries for line in _verdict(each)),
        "",
        "## Portions that failed",
        "",
        *(line for each in summaries for one in each["failed"] for line in _failed(each, one)),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _row(found: Json) -> str:
    counts = found["counts_of_passed_portions"].items()
    told = ", ".join(f"{key.replace('_', ' ')} {_figure(value)}" for key, value in counts)
    commits = dict.fromkeys(portion["commit"] for portion in found["portions"])
    failed = f"**{found['failed_portions']}**" if found["failed"] else "0"
    cells = [
        *(found["cell"], _what(found["cell"]), found["asked"], found["survived"], failed),
        *(told or "-", ", ".join(commits), found["machine"]),
    ]
    return f"| {' | '.join(map(str, cells))} |"


def _verdict(found: Json) -> Iterable[str]:
    """What became of the promise of a cell, if there is one beside that nothing is lost."""
    promise = PROMISES.get(found["cell"].split("_")[0])
    if promise is None:
        return
    passed = [portion for portion in found["portions"] if portion["passed"]]
    told = [each for each in passed if {*promise.needs} <= each["counts"].keys()]
    figure, verdict = "-", "not measured"
    if told:
        columns = [[each["counts"][key] for each in told] for key in promise.needs]
        value = promise.figure(*columns)
        figure = _figure(float(value))
        verdict = "kept" if value <= promise.most else "**not kept**"
    strikes = sum(each["strikes"] for each in told)
    cells = (found["cell"], promise.what, f"{promise.most:g}", figure, strikes, verdict)
    yield f"| {' | '.join(map(str, cells))} |"


def _failed(found: Json, portion: Json) -> list[str]:
    place = f"{portion['strikes']} from {portion['first']} on"
    said = [line if len(line) <= _LINE else f"{line[:_LINE]} ..." for line in portion["said"]]
    return [
        f"### {found['cell']}, {place}, at {portion['commit']}, {portion['at']}",
        "",
        f"Cause: {portion['cause']}.",
        "",
        *(f"    {line}" for line in said),
        "",
    ]


def _what(name: str) -> str:
    return WHAT[name.split("_")[0]]


def _figure(value: float) -> str:
    return f"{round(value, 3):g}" if isinstance(value, float) else str(value)
