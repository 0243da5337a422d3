"""Figures for Prometheus: calls of this process by route, and everything else from the rows.

A scrape reads the rows anew, so any process tells the same, whatever restarted.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable

import structlog
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError

from .. import __version__, logs
from ..store import figures, session
from .health import broker_answers

MEDIA_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
log = structlog.get_logger("lethe.api")

disable_created_metrics()  # type: ignore[no-untyped-call]  # as the client has it
registry = CollectorRegistry(auto_describe=False)
in_progress = Gauge("lethe_http_requests_in_progress", "Calls being served.", registry=registry)
_requests = Counter(
    "lethe_http_requests",
    "Calls by method, route template and status.",
    ("method", "route", "status"),
    registry=registry,
)
# Without labels it is there, as 0, before the first error: no rate sees a series that begins at 1.
_server_errors = Counter("lethe_http_server_errors", "Calls answered with 5xx.", registry=registry)
_seconds = Histogram(
    "lethe_http_request_duration_seconds",
    "Time from the head of a call to the end of its answer; not of calls held on purpose.",
    ("method", "route"),
    buckets=SECONDS,
    registry=registry,
)


def observe(method: str, route: str, status: int, seconds: float | None) -> None:
    """Count one call; every argument comes from a closed list but the time.

    Args:
        seconds: how long it took; None if it waited because the caller asked for that.
    """
    _requests.labels(method, route, str(status)).inc()
    if status >= 500:
        _server_errors.inc()
    if seconds is not None:
        _seconds.labels(method, route).observe(seconds)


def exposition() -> bytes:
    """Return all figures in the text format of Prometheus."""
    return generate_latest(registry)


class _Service(Collector):
    """What this process knows of the service; without a database it says so, and the rest."""

    def collect(self) -> Iterable[Metric]:
        """Read everything once."""
        yield _gauge("build", "Version of this process.", {(__version__,): 1}, ("version",))
        dropped = CounterMetricFamily(
            "lethe_log_fields_dropped", "Log fields of this process that were not on the list."
        )
        dropped.add_metric([], logs.num_dropped())
        yield dropped
        broker = broker_answers(session.settings().broker_url)
        yield _gauge("broker_up", "Whether the broker answers.", {(): float(broker)})
        yield from _storage()
        try:
            found = [*_from_rows()]
        except SQLAlchemyError as error:
            log.warning("database_error", error=type(error).__name__)
            found = [_gauge("database_up", "Whether the database answers.", {(): 0.0})]
        yield from found


def _from_rows() -> Iterable[Metric]:
    with session.reading() as reader:
        yield _gauge("database_up", "Whether the database answers.", {(): 1.0})
        skew: figures.Values = {(): figures.skew(reader)}
        yield _gauge("clock_skew_seconds", "This machine's clock minus the database's.", skew)
        for figure in figures.FIGURES:
            kind = GaugeMetricFamily if figure.kind == "gauge" else CounterMetricFamily
            name = f"lethe_{figure.name.removesuffix('_total')}"
            family = kind(name, figure.help, labels=figure.labels)
            for labels, value in figure.read(reader).items():
                family.add_metric(labels, value)
            yield family
        yield _erasure(figures.erasure(reader))


def _erasure(found: dict[str, figures.Distribution]) -> Metric:
    family = HistogramMetricFamily(
        "lethe_erasure_seconds",
        "Time from a request's arrival to its completion.",
        labels=("outcome",),
    )
    for outcome, times in found.items():
        bounds = (*map(str, figures.BUCKETS), "+Inf")
        family.add_metric((outcome,), [*zip(bounds, times.counts, strict=True)], times.total)
    return family


def _storage() -> Iterable[Metric]:
    try:
        disk = shutil.disk_usage(session.settings().data_dir)
    except OSError as error:
        log.warning("storage_away", error=type(error).__name__)
        return
    yield _gauge("storage_bytes", "Size of the disk of the data folder.", {(): disk.total})
    yield _gauge("storage_free_bytes", "Room left on it.", {(): disk.free})


def _gauge(
    name: str, documentation: str, values: figures.Values, labels: tuple[str, ...] = ()
) -> Metric:
    family = GaugeMetricFamily(f"lethe_{name}", documentation, labels=labels)
    for label, value in values.items():
        family.add_metric(label, value)
    return family


ProcessCollector(namespace="lethe", registry=registry)
registry.register(_Service())
