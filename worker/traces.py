"""A job in logs and traces: one span for the attempt, one for each phase and rung its runner tells.

The job's trace is its own and links to the call that asked for it: between the two may lie days.
The runner has no network; what it does is seen through what it reports.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import structlog
from opentelemetry import trace

from app import correlation, tracing
from app.store.jobs import Claim
from worker.protocol import Progress

_NAME = re.compile(r"[a-z0-9_]{1,64}")


class _Phases:
    """The phase at work, and its span."""

    def __init__(self) -> None:
        self._at: tuple[str, int | None] | None = None
        self._span: trace.Span | None = None

    def enter(self, progress: Progress) -> None:
        at = (progress.phase, None if progress.rung is None else progress.rung.index)
        if at == self._at:
            return
        self.close()
        self._at, self._span = at, tracing.tracer().start_span(f"phase {progress.phase}")
        if progress.rung is not None:
            self._span.set_attribute("lethe.rung", progress.rung.index)
            # The runner has parsed hostile files: only what looks like a name is believed.
            if _NAME.fullmatch(progress.rung.method):
                self._span.set_attribute("lethe.method", progress.rung.method)

    def close(self) -> None:
        if self._span is not None:
            self._span.end()


_phases: ContextVar[_Phases | None] = ContextVar("phases", default=None)


@contextmanager
def of(claim: Claim) -> Iterator[None]:
    """Let what is logged and traced in the block belong to this attempt."""
    job = claim.job
    known: dict[str, str | int] = {
        "job_id": job.id,
        "epoch": claim.epoch,
        "attempt": job.attempts,
        "tenant": job.tenant_id,
        **({"request_id": job.call_id} if job.call_id else {}),
    }
    link = correlation.link(job.trace_parent)
    phases = _Phases()
    with (
        tracing.tracer().start_as_current_span(
            f"job {job.kind}",
            context=trace.set_span_in_context(trace.INVALID_SPAN),
            kind=trace.SpanKind.CONSUMER,
            attributes={"lethe.job_kind": job.kind, **{f"lethe.{n}": v for n, v in known.items()}},
            links=[link] if link else [],
            record_exception=False,
        ),
        structlog.contextvars.bound_contextvars(**known),
    ):
        before = _phases.set(phases)
        try:
            yield
        finally:
            phases.close()
            _phases.reset(before)


def enter(progress: Progress) -> None:
    """Note which phase the runner is in."""
    phases = _phases.get()
    if phases is not None:
        phases.enter(progress)


def ended(status: str | None) -> None:
    """Note the state in which the job at work was left."""
    trace.get_current_span().set_attribute("lethe.status", status or "unknown")
