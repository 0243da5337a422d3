"""``python -m benchmarks.stamped.runner``: a runner that notes when things began.

For each unlearn order it appends one line of JSON to ``stamps.jsonl`` in the service's data folder,
at the beginning of the first backward pass: readings of the monotonic clock, which all processes
of a machine share.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from worker import runner

STAMPS = (Path.cwd().parents[2] / "stamps.jsonl").open("a")
"""The runner starts in ``<data folder>/scratch/<worker>/<runner>``, and is locked in there next."""


def load() -> Mapping[str, runner.Work]:
    """Return core's work, the unlearning with stamps."""
    works = runner.core_work()
    return {**works, "unlearn": _stamped(works["unlearn"])}


def _stamped(unlearn: runner.Work) -> runner.Work:
    def work(**arguments: Any) -> dict[str, Any]:
        stamps = {"order": time.monotonic()}
        report = arguments["report"]

        def told(phase: str, *rest: Any) -> None:
            stamps.setdefault(phase, time.monotonic())
            report(phase, *rest)

        def first() -> None:
            if "backward" not in stamps and "unlearning" in stamps:
                stamps["backward"] = time.monotonic()
                STAMPS.write(json.dumps(stamps) + "\n")
                STAMPS.flush()

        for name in ("backward", "grad"):
            setattr(torch.autograd, name, _before(getattr(torch.autograd, name), first))
        return unlearn(**{**arguments, "report": told})

    return work


def _before(call: Callable[..., Any], first: Callable[[], None]) -> Callable[..., Any]:
    def wrapped(*arguments: Any, **options: Any) -> Any:
        first()
        return call(*arguments, **options)

    return wrapped


runner.main(load)
