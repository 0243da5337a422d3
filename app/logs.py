"""Every line of every process through one door: known fields only, so that no personal data passes.

Lines are JSON, or readable where somebody looks at a terminal. What libraries log comes through the
same door, as the template it was logged with: values stay behind. An exception is its type and the
places in the code, never its message.
"""

from __future__ import annotations

import logging
import re
import sys
import traceback
from collections.abc import MutableMapping
from types import TracebackType
from typing import Any, TextIO

import structlog
from structlog.stdlib import ProcessorFormatter
from structlog.typing import Processor

from . import correlation
from .settings import Settings

FIELDS = (
    *("timestamp", "level", "event", "logger", "function"),
    *("request_id", "trace_id", "span_id", "tenant", "job_id", "epoch", "attempt", "created"),
    *("method", "route", "status", "duration_ms", "code", "error", "stack"),
    *("kind", "reason", "worker", "device", "task", "pid", "exit_status", "scratch"),
    *("jobs", "files", "folders", "leases_freed", "jobs_failed", "jobs_cancelled"),
    *("answers_forgotten", "workers_forgotten", "named", "taken", "sandbox", "cause"),
    *("key", "path", "address", "key_in_query", "share", "connection"),
)
"""Fields that may be logged, in the order in which they are; others are dropped and counted."""

MOST_CHARACTERS = 4000
FRAMES = 12
OURS = ("app", "core", "worker", "lethe", "__main__")
PLAIN = ("uvicorn.error", "celery", "kombu", "alembic")
"""Libraries whose messages are constants, or templates without values of ours."""
ACCESS = "lethe.access"
"""Who read what: an audit, which no setting may switch off."""
TALKATIVE = ("uvicorn.error", "celery")
"""Libraries that say something useful before anything is wrong."""

_FRAME = re.compile(r'^\s*File "[^"]*?([\w.-]+\.py)", line (\d+), in ([\w<>]{1,80})\s*$')
_RAISED = re.compile(r"^((?:[A-Za-z_]\w{0,60}\.)*[A-Z]\w{0,60}(?:Error|Exception|Died|Exit))\b")
_num_dropped = 0

Event = MutableMapping[str, Any]


def configure(settings: Settings, stream: TextIO | None = None) -> None:
    """Send all logs of this process through the door, to standard output by default."""
    stream = stream or sys.stdout
    readable = settings.log_format == "console" or (
        settings.log_format == "auto" and stream.isatty()
    )
    render: Processor = (
        structlog.dev.ConsoleRenderer(colors=stream.isatty())
        if readable
        else structlog.processors.JSONRenderer()
    )
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    level_of_access = min(level, logging.INFO)
    known: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        _correlate,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *known,
            ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level_of_access),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        ProcessorFormatter(
            foreign_pre_chain=[*known, _without_values],
            processors=[ProcessorFormatter.remove_processors_meta, only_known, render],
            use_get_message=False,
            pass_foreign_args=True,
        )
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(max(level, logging.WARNING))
    for name in (*OURS, *TALKATIVE):
        logging.getLogger(name).setLevel(level)
    logging.getLogger(ACCESS).setLevel(level_of_access)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "celery"):
        library = logging.getLogger(name)
        library.handlers.clear()
        library.propagate = name != "uvicorn.access"


def num_dropped() -> int:
    """How many fields this process has dropped."""
    return _num_dropped


def only_known(_: Any, __: str, event: Event) -> Event:
    """Keep what is known and plain; say how much was dropped, and name nothing of it."""
    global _num_dropped
    _explain(event)
    kept = {name: _cut(event[name]) for name in FIELDS if _is_plain(event.get(name, event))}
    lost = len(event) - len(kept)
    if lost:
        _num_dropped += lost
        kept["dropped"] = lost
    return kept


def scrubbed(stderr: str) -> str:
    """Return the places in the code and the types of errors in what a runner wrote, and no more."""
    found = []
    for line in stderr.splitlines():
        if frame := _FRAME.match(line):
            found.append(f"{frame[1]}:{frame[2]} {frame[3]}")
        elif raised := _RAISED.match(line):
            found.append(raised[1])
    return " | ".join(found[-FRAMES:])


def _correlate(_: Any, __: str, event: Event) -> Event:
    known = {"trace_id": correlation.trace_id(), "span_id": correlation.span_id()}
    for name, value in (correlation.noted() | known).items():
        if value:
            event.setdefault(name, value)
    return event


def _without_values(_: Any, __: str, event: Event) -> Event:
    """Reduce a library's record to what it can say without values of ours."""
    record: logging.LogRecord = event["_record"]
    values = event.pop("positional_args", ())
    library = next((name for name in PLAIN if f"{record.name}.".startswith(f"{name}.")), None)
    if library == "uvicorn.error" and record.levelno < logging.WARNING:
        event["event"] = record.msg % values if values else record.msg  # address and process id
    elif library is None and not values:
        event["event"] = "library_message"  # made of anything at all
    event["function"] = record.funcName
    return event


def _explain(event: Event) -> None:
    """Put the type and the places of an exception in the place of it."""
    given = event.pop("exc_info", None)
    error = sys.exception() if given is True else given
    if isinstance(error, tuple):
        error = error[1]
    if isinstance(error, BaseException):
        event["error"] = type(error).__name__
        event["stack"] = places(error.__traceback__)


def places(trace: TracebackType | None) -> str:
    """Return where in the code a traceback leads, without any value."""
    frames = traceback.extract_tb(trace)[-FRAMES:]
    return " | ".join(f"{_module(frame.filename)}:{frame.lineno} {frame.name}" for frame in frames)


def _module(file: str) -> str:
    return "/".join(file.rsplit("/", 2)[-2:])


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | int | float | bool)


def _cut(value: Any) -> Any:
    return value[:MOST_CHARACTERS] if isinstance(value, str) else value
