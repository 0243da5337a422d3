"""What may be logged, and what may not."""

from __future__ import annotations

import ast
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from fastapi.testclient import TestClient

from app import correlation, logs
from app.main import build
from app.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
SECRET = "someone@example.org"
LOGGERS = ("log", "_log", "access")
WRITES = ("debug", "info", "warning", "error", "exception", "critical", "note")


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def restored() -> Iterator[None]:
    """Leave logging as it was."""
    names = [None, logs.ACCESS, *logs.OURS, *logs.TALKATIVE, "uvicorn", "uvicorn.access"]
    before = [(logging.getLogger(n), logging.getLogger(n).level) for n in names]
    handlers = logging.getLogger().handlers[:]
    propagates = logging.getLogger("uvicorn.access").propagate
    yield
    structlog.reset_defaults()
    for logger, level in before:
        logger.setLevel(level)
    logging.getLogger().handlers[:] = handlers
    logging.getLogger("uvicorn.access").propagate = propagates


@pytest.fixture
def stream(restored: None) -> io.StringIO:
    """Where the logs of this test go, as JSON."""
    made = io.StringIO()
    logs.configure(Settings(log_format="json"), made)
    return made


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_unknown_fields_are_dropped_and_counted(stream: io.StringIO) -> None:
    before = logs.num_dropped()
    structlog.get_logger("app.x").info("hello", job_id="job_1", file=SECRET, code=["not", "plain"])
    (line,) = lines(stream)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "level": "info",
        "event": "hello",
        "logger": "app.x",
        "job_id": "job_1",
        "dropped": 2,
    }
    assert logs.num_dropped() == before + 2


@pytest.mark.parametrize(
    ("level", "kept"),
    [
        ("debug", ["read", "access_refused", "detail", "info"]),
        ("info", ["read", "access_refused", "info"]),
        ("error", ["read", "access_refused"]),
    ],
)
def test_no_level_switches_off_who_read_what(restored: None, level: str, kept: list[str]) -> None:
    stream = io.StringIO()
    logs.configure(Settings.model_validate({"log_format": "json", "log_level": level}), stream)
    structlog.get_logger("lethe.access").info("read")
    structlog.get_logger("lethe.access").warning("access_refused")
    structlog.get_logger("lethe.api").debug("detail")
    structlog.get_logger("lethe.api").info("info")
    assert [line["event"] for line in lines(stream)] == kept


def test_an_exception_is_its_type_and_places(stream: io.StringIO) -> None:
    try:
        raise ValueError(SECRET)
    except ValueError:
        structlog.get_logger("app.x").exception("broken")
        logging.getLogger("sqlalchemy.pool").exception("of %s", SECRET)
    ours, library = lines(stream)
    assert (ours["error"], library["error"]) == ("ValueError", "ValueError")
    assert "test_logs.py" in ours["stack"]
    assert library["event"] == "of %s"
    assert SECRET not in stream.getvalue()


def test_a_library_keeps_its_values_for_itself(stream: io.StringIO) -> None:
    logging.getLogger("asyncio").error(SECRET)
    logging.getLogger("celery.worker").warning("Received %r", SECRET)
    logging.getLogger("uvicorn.error").info("Running on %s:%d", "host", 80)
    logging.getLogger("uvicorn.access").info("GET /%s", SECRET)
    logging.getLogger("sqlalchemy.engine").info("select %s", SECRET)
    assert [line["event"] for line in lines(stream)] == [
        "library_message",
        "Received %r",
        "Running on host:80",
    ]
    assert SECRET not in stream.getvalue()


def test_a_terminal_gets_a_readable_line(restored: None) -> None:
    terminal = Terminal()
    logs.configure(Settings(), terminal)
    structlog.get_logger("app.x").info("hello", job_id="job_1", file=SECRET)
    text = terminal.getvalue()
    assert "hello" in text
    assert "job_1" in text
    assert not text.startswith("{")
    assert SECRET not in text


def test_what_a_runner_wrote_is_reduced_to_places() -> None:
    stderr = (
        "Traceback (most recent call last):\n"
        '  File "/srv/core/ingest.py", line 12, in read\n'
        f"    names['{SECRET}']\n"
        f"KeyError: '{SECRET}'\n"
        f"pyarrow.lib.ArrowInvalid: {SECRET}\n"
        f"{SECRET}\n"
    )
    assert logs.scrubbed(stderr) == "ingest.py:12 read | KeyError"


def test_a_call_is_one_line_that_names_no_value(
    stream: io.StringIO, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    http = TestClient(build(dispatcher=False))
    answer = http.get(
        f"/jobs/{SECRET}?{SECRET}={SECRET}",
        headers={"X-Request-Id": "my-call", "User-Agent": SECRET},
    )
    refusal, line = lines(stream)
    assert (refusal["event"], refusal["request_id"]) == ("access_refused", "my-call")
    assert (line["event"], line["method"], line["route"]) == ("call", "GET", "/jobs/{job_id}")
    assert (line["status"], line["request_id"]) == (answer.status_code, "my-call")
    assert line["trace_id"] == answer.json()["trace_id"]
    assert len(line["trace_id"]) == 32
    assert SECRET not in stream.getvalue()


def test_calls_do_not_inherit_from_each_other() -> None:
    correlation.fresh()
    correlation.note(request_id="one")
    assert correlation.request_id() == "one"
    correlation.fresh()
    assert correlation.request_id() is None


def logged_fields(tree: ast.AST) -> set[str | None]:
    """Names of the fields in all calls that log, or note for later lines; None is a mapping."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return {
        field.arg
        for call in calls
        if isinstance(call.func, ast.Attribute)
        and call.func.attr in WRITES
        and ast.unparse(call.func.value) in (*LOGGERS, "correlation")
        for field in call.keywords
    }


def test_every_field_that_is_logged_is_on_the_list() -> None:
    sources = [path for top in ("app", "worker") for path in (ROOT / top).rglob("*.py")]
    found = {
        (str(path.relative_to(ROOT)), name)
        for path in sources
        for name in logged_fields(ast.parse(path.read_text()))
    }
    assert len(found) > 50
    unknown = {(path, name) for path, name in found if name not in (*logs.FIELDS, "exc_info")}
    # Mappings, whose names are those of other tests: of a refusal, and of what a sweep counts.
    assert unknown == {("app/api/caller.py", None), ("worker/sweep.py", None)}


def test_every_logger_has_a_name_that_is_looked_for() -> None:
    sources = [path for top in ("app", "worker") for path in (ROOT / top).rglob("*.py")]
    made = [
        line.partition(" = ")[0]
        for path in sources
        for line in path.read_text().splitlines()
        if "structlog.get_logger(" in line
    ]
    assert set(made) == set(LOGGERS)
