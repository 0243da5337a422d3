"""``python -m benchmarks.stamped.serve``: the embedded service with runners that keep stamps."""

from __future__ import annotations

from functools import partial

from worker import serve, station

station.Station = partial(  # type: ignore[assignment, misc]  # a stand-in for the class
    station.Station, module="benchmarks.stamped.runner"
)
serve.main()
