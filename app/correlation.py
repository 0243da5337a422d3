"""What belongs together: the call at work and its trace, known to every line written meanwhile."""

from __future__ import annotations

from contextvars import ContextVar

from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_call: ContextVar[dict[str, str] | None] = ContextVar("lethe_call", default=None)
_propagator = TraceContextTextMapPropagator()


def fresh() -> None:
    """Begin a call that nothing is known of yet."""
    _call.set({})


def note(**fields: str) -> None:
    """Remember something about the call at work, for all of its threads and tasks."""
    call = _call.get()
    if call is not None:
        call.update(fields)


def noted() -> dict[str, str]:
    """What was remembered; empty outside of calls."""
    return _call.get() or {}


def request_id() -> str | None:
    """Id of the call at work, if there is one."""
    return noted().get("request_id")


def trace_id() -> str:
    """Id of the trace at work in hexadecimal digits; empty if there is none."""
    found = trace.get_current_span().get_span_context()
    return trace.format_trace_id(found.trace_id) if found.is_valid else ""


def span_id() -> str:
    """Id of the span at work in hexadecimal digits; empty if there is none."""
    found = trace.get_current_span().get_span_context()
    return trace.format_span_id(found.span_id) if found.is_valid else ""


def trace_parent() -> str | None:
    """The span at work as a W3C ``traceparent``, if there is one."""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier)
    return carrier.get("traceparent")


def link(trace_parent: str | None) -> trace.Link | None:
    """Return the link to a stored ``traceparent``; None if there is none in it."""
    context = _propagator.extract({"traceparent": trace_parent or ""})
    found = trace.get_current_span(context).get_span_context()
    return trace.Link(found) if found.is_valid else None
