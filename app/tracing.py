"""Traces: spans are always made, so that every call has a trace id; exported only where asked for.

What leaves the process is an allow-list, too: names of routes and phases, never paths or messages.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cache

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Status

from . import __version__
from .settings import Settings

ATTRIBUTES = frozenset(
    {
        "error.type",
        "http.request.method",
        "http.response.status_code",
        "http.route",
        "lethe.attempt",
        "lethe.epoch",
        "lethe.job_id",
        "lethe.job_kind",
        "lethe.method",
        "lethe.request_id",
        "lethe.rung",
        "lethe.status",
        "lethe.tenant",
        "network.protocol.version",
        "url.scheme",
    }
)
"""Attributes that may leave the process; all others are dropped."""

_lock = threading.Lock()
_exporting: list[BatchSpanProcessor] = []


@cache
def provider() -> TracerProvider:
    """The tracer provider of this process."""
    resource = Resource.create({"service.name": "lethe", "service.version": __version__})
    return TracerProvider(resource=resource, shutdown_on_exit=False)


def tracer() -> trace.Tracer:
    """The tracer for spans of our own."""
    return provider().get_tracer("lethe", __version__)


def start(settings: Settings) -> None:
    """Export spans to the collector in the settings, if one is named; again changes nothing."""
    with _lock:
        if not settings.otlp_endpoint or _exporting:
            return
        endpoint = f"{settings.otlp_endpoint.rstrip('/')}/v1/traces"
        _exporting.append(BatchSpanProcessor(Scrubbed(OTLPSpanExporter(endpoint=endpoint))))
        provider().add_span_processor(_exporting[0])


def stop() -> None:
    """Send what is left; the process is about to end."""
    with _lock:
        for processor in _exporting:
            processor.force_flush()
            processor.shutdown()  # type: ignore[no-untyped-call]  # the SDK's


class Scrubbed(SpanExporter):
    """Exports spans without anything that may hold personal data.

    Args:
        exporter: does the work.
    """

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export the known attributes of these spans; no events, no messages of errors."""
        return self._exporter.export([_scrubbed(span) for span in spans])

    def shutdown(self) -> None:
        """Close the exporter."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Send what is left."""
        return self._exporter.force_flush(timeout_millis)


def _scrubbed(span: ReadableSpan) -> ReadableSpan:
    known = {name: value for name, value in (span.attributes or {}).items() if name in ATTRIBUTES}
    return ReadableSpan(
        name=span.name,
        context=span.context,
        parent=span.parent,
        resource=span.resource,
        attributes=known,
        links=span.links,
        kind=span.kind,
        status=Status(span.status.status_code),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )
