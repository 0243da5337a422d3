"""``worker.main`` with runners that take 0.2 s, for deaths that training has no part in."""

from __future__ import annotations

from functools import partial

from worker import station
from worker.main import celery

__all__ = ["celery"]

station.Station = partial(station.Station, module="tests.chaos.quick_runner")  # type: ignore[misc, assignment]
