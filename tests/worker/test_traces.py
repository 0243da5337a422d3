"""A job in traces and logs, and what leaves the process."""

from __future__ import annotations

import threading

import pytest
import structlog
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from app import tracing
from app.store import tables
from app.store.jobs import Claim
from worker import traces
from worker.lease import Heartbeat
from worker.protocol import Progress, RungAtWork

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SECRET = "someone@example.org"


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """What would have been sent to a collector."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(tracing.Scrubbed(exporter)))
    monkeypatch.setattr(tracing, "provider", lambda: provider)
    return exporter


def claim(trace_parent: str | None = f"00-{TRACE}-{SPAN}-01") -> Claim:
    job = tables.Job(
        tenant_id="ten_1",
        id="job_1",
        kind="unlearn",
        attempts=2,
        call_id="my-call",
        trace_parent=trace_parent,
    )
    return Claim(job, 3)


def at(phase: str, index: int | None = None, method: str = "ssd") -> Progress:
    rung = None if index is None else RungAtWork(index=index, of=2, method=method)
    return Progress(event="progress", phase=phase, progress=0.5, rung=rung)


def test_one_span_for_the_attempt_and_one_for_each_phase(exported: InMemorySpanExporter) -> None:
    with traces.of(claim()):
        for progress in (
            at("resolving"),
            at("unlearning", 0),
            at("unlearning", 0),
            at("unlearning", 1, SECRET),
        ):
            traces.enter(progress)
        traces.ended("succeeded")
    *phases, job = exported.get_finished_spans()
    assert [span.name for span in phases] == [
        "phase resolving",
        "phase unlearning",
        "phase unlearning",
    ]
    assert [dict(span.attributes or {}) for span in phases] == [
        {},
        {"lethe.rung": 0, "lethe.method": "ssd"},
        {"lethe.rung": 1},
    ]
    assert {span.parent.span_id for span in phases if span.parent} == {job.context.span_id}
    assert job.parent is None
    assert dict(job.attributes or {}) == {
        "lethe.job_kind": "unlearn",
        "lethe.job_id": "job_1",
        "lethe.epoch": 3,
        "lethe.attempt": 2,
        "lethe.tenant": "ten_1",
        "lethe.request_id": "my-call",
        "lethe.status": "succeeded",
    }
    (link,) = job.links
    assert f"{link.context.trace_id:032x}" == TRACE != f"{job.context.trace_id:032x}"


@pytest.mark.parametrize("trace_parent", [None, "", "rubbish"])
def test_a_job_without_a_trace_has_no_link(
    exported: InMemorySpanExporter, trace_parent: str | None
) -> None:
    with traces.of(claim(trace_parent)):
        pass
    (job,) = exported.get_finished_spans()
    assert not job.links


def test_values_and_messages_stay_behind(exported: InMemorySpanExporter) -> None:
    with (
        pytest.raises(ValueError, match=SECRET),
        tracing.tracer().start_as_current_span("work", attributes={"url.path": SECRET}),
    ):
        raise ValueError(SECRET)
    (span,) = exported.get_finished_spans()
    assert not span.status.is_ok
    assert SECRET not in span.to_json()


def test_lines_of_all_threads_of_a_job_name_it(exported: InMemorySpanExporter) -> None:
    seen: list[dict[str, object]] = []
    beaten = threading.Event()

    class Alive:
        alive, cancel = True, False

    def renew(_: Progress | None) -> Alive:
        seen.append(structlog.contextvars.get_contextvars())
        beaten.set()
        return Alive()

    with traces.of(claim()), Heartbeat(renew, 60):
        assert beaten.wait(10)
    assert seen[0] == {
        "job_id": "job_1",
        "epoch": 3,
        "attempt": 2,
        "tenant": "ten_1",
        "request_id": "my-call",
    }
    assert structlog.contextvars.get_contextvars() == {}
