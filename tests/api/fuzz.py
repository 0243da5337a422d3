"""``python -m tests.api.fuzz --cases 50000``: made-up calls, held against the OpenAPI document.

Schemathesis calls the application in this process: coverage of every parameter, random bodies, and
sequences of calls. Whatever breaks a check is shown once with the call that does it.

``--postgres`` takes a database of its own on a server instead of SQLite. A run in the full number
writes ``benchmarks/results/fuzz.json`` and its page, and keeps what was measured on the other
database; ``--write`` has a shorter one do so.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import schemathesis
import structlog
from fastapi import FastAPI
from fastapi.testclient import TestClient
from schemathesis import Config, openapi
from schemathesis.engine import events, from_schema

from app.main import build
from app.settings import Settings
from app.store import keys, session
from benchmarks.hardware import RESULTS, describe
from benchmarks.postgres import SERVER, fresh_database
from benchmarks.tables import Row, write
from core.networks import load_extras
from tests.chaos.full import commit

from .world import Tenant

PEPPER = "a pepper for tests, not for anything else"
CASES_PER_EXAMPLE = 140
"""About how many calls one example per operation comes to, with all phases."""
FULL = 50_000
MAX_SECONDS = 2.0
EXAMPLES_PER_TENANT = 5
PHASES = ("examples", "coverage", "fuzzing", "stateful")
TUS_REFUSALS = ["400", "401", "403", "404", "412", "415", "422"]
"""412 is how tus refuses a call without its version."""
BEYOND_SCHEMAS = (
    "Value error",  # pydantic's words for fields that contradict each other
    "value is not a valid IPv4 or IPv6 network",
    "Give a role, or at least one scope.",
    "Give a time in the past",
)
UPLOADS = "^/(datasets|models|uploads.*)$"
"""No schema can say what a parquet or safetensors file is, so made-up files are refused."""


@schemathesis.serializer("application/offset+octet-stream")
def _piece(_: object, value: object) -> bytes:
    """A piece of an upload is bytes as they are."""
    return value if isinstance(value, bytes) else str(value).encode()


@dataclass
class Report:
    """What was called, and what broke."""

    calls: Counter[int] = field(default_factory=Counter)
    """Status -> how many answers."""
    failures: dict[tuple[str, str], str] = field(default_factory=dict)
    """Check and operation -> the first call that broke it."""
    errors: list[str] = field(default_factory=list)

    @property
    def num_calls(self) -> int:
        """How many answers came back."""
        return sum(self.calls.values())

    @property
    def num_known(self) -> int:
        """How many answers came back to a caller with a key."""
        return self.num_calls - self.calls[401]

    def __str__(self) -> str:
        counts = ", ".join(f"{status}: {self.calls[status]}" for status in sorted(self.calls))
        broken = [
            f"{check} {where}\n  {call}" for (check, where), call in sorted(self.failures.items())
        ]
        head = f"{self.num_calls} calls ({counts}), {len(broken)} failures"
        return "\n".join([head, *broken, *self.errors])


def fuzz(
    api: FastAPI,
    key: str,
    examples: int,
    seed: int,
    phases: tuple[str, ...],
    seconds: float | None = None,
) -> Report:
    """Call ``api`` with made-up calls, and hold every answer against the document.

    Args:
        api: the application, over a store of its own.
        key: with every scope.
        examples: per operation and phase.
        seed: decides what is made up.
        phases: some of ``PHASES``.
        seconds: that an answer may take; None for any number.
    """
    config = Config.from_dict(
        {
            "seed": seed,
            "continue-on-failure": True,
            "headers": {"Authorization": f"Bearer {key}"},
            "generation": {"max-examples": examples, "database": "none", "no-shrink": True},
            "phases": {name: {"enabled": name in phases} for name in PHASES},
            "checks": {"max_response_time": seconds} if seconds else {},
            "operations": [
                {
                    "include-path-regex": UPLOADS,
                    "checks": {
                        "positive_data_acceptance": {"enabled": False},
                        "negative_data_rejection": {"expected-statuses": TUS_REFUSALS},
                        "missing_required_header": {"expected-statuses": TUS_REFUSALS},
                    },
                }
            ],
        }
    )
    report = Report()
    schema = openapi.from_asgi("/openapi.json", api, config=config)
    for event in from_schema(schema).execute():
        if isinstance(event, events.ScenarioFinished):
            _note(report, event)
        elif isinstance(event, events.NonFatalError | events.FatalError):
            report.errors.append(str(getattr(event, "info", None) or event.exception))
    return report


def _note(report: Report, event: Any) -> None:
    recorder = event.recorder
    for interaction in recorder.interactions.values():
        if interaction.response is not None:
            report.calls[interaction.response.status_code] += 1
    for case_id, checks in recorder.checks.items():
        for check in checks:
            call = recorder.interactions[case_id]
            if check.failure_info is None or _is_no_matter_of_schemas(check.name, call.response):
                continue
            request, answer = call.request, call.response
            told = [request.method, request.uri, str(request.body)[:600]]
            if answer is not None:
                told += ["->", str(answer.status_code), answer.text[:400]]
            where = recorder.cases[case_id].value.operation.label
            report.failures.setdefault((check.name, where), " ".join(told))


def _is_no_matter_of_schemas(check: str, answer: Any) -> bool:
    """Whether a call that fits its schema was refused for a reason that no schema can give."""
    if check != "positive_data_acceptance" or answer is None:
        return False
    if answer.status_code == 410:  # it was erased, perhaps by an earlier made-up call
        return True
    problem = answer.json()
    if problem["code"] == "invalid_parameter":
        return bool(problem["detail"] == "Give either after or before.")
    # Every other code is about what there is, or about characters that JSON has and text has not.
    return problem["code"] not in ("validation_failed", "unknown_field") or all(
        each["message"].startswith(BEYOND_SCHEMAS) for each in problem["errors"]
    )


def furnish(api: FastAPI, settings: Settings) -> Tenant:
    """Make a tenant who has one of everything."""
    with session.transaction() as writer:
        owner = keys.ensure_tenant(writer, f"fuzz-{secrets.token_hex(4)}")
        _, text = keys.create(writer, owner.id, "all", keys.SCOPES, None)
    load_extras()  # as the API does when it starts
    http = TestClient(api, raise_server_exceptions=False)
    tenant = Tenant(http, owner.id, text, settings.data_dir / "scratch")
    model_id = tenant.ready_model()
    tenant.audit(model_id, tenant.forget(model_id).json()["id"])
    return tenant


def main() -> int:
    """Fuzz a service in a temporary folder; the status says whether anything broke."""
    parser = argparse.ArgumentParser(prog="python -m tests.api.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=FULL, help="calls with a key, about")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--phases", nargs="+", default=[*PHASES], choices=PHASES)
    parser.add_argument("--postgres", nargs="?", const=SERVER, help="URL of a server we may use")
    parser.add_argument("--write", action="store_true", help="write the figures of a short run")
    given = parser.parse_args()
    structlog.configure(processors=[_silent])
    started, at = time.monotonic(), datetime.now(UTC)
    tested = commit()
    with tempfile.TemporaryDirectory() as folder, _database(given.postgres) as url:
        settings = Settings(
            data_dir=Path(folder),
            database_url=url,
            pepper=PEPPER,
            # Every check of keys calls without one.
            failed_keys_per_minute=10**9,
            calls_per_minute_per_key=0,
            calls_per_minute_per_tenant=0,
        )
        session.configure(settings)
        session.upgrade()
        report = _fuzz_all(settings, given.cases, given.seed, tuple(given.phases))
        session.configure(None)
    sys.stdout.write(f"{report}\n")
    if given.write or given.cases >= FULL:
        _write(
            "PostgreSQL" if given.postgres else "SQLite",
            {
                "calls": report.num_calls,
                "calls_with_a_key": report.num_known,
                "by_status": {str(status): report.calls[status] for status in sorted(report.calls)},
                "failures": [
                    f"{' '.join(which)}: {call}" for which, call in report.failures.items()
                ],
                "errors": report.errors,
                "seed": given.seed,
                "phases": given.phases,
                "seconds": round(time.monotonic() - started),
                "commit": tested,
                "at": at.isoformat(timespec="seconds"),
                "hardware": describe(),
            },
        )
    return int(bool(report.failures or report.errors))


@contextmanager
def _database(server: str | None) -> Iterator[str]:
    """Yield the URL of a fresh database on a server; without one an empty URL, which is SQLite."""
    if server is None:
        yield ""
        return
    with fresh_database(server) as url:
        yield url


def _fuzz_all(settings: Settings, cases: int, seed: int, phases: tuple[str, ...]) -> Report:
    """Go on with new tenants and seeds until ``cases`` calls with a key were answered."""
    report = Report()
    api = build(dispatcher=False)
    while (left := cases - report.num_known) > 0:
        examples = max(1, min(EXAMPLES_PER_TENANT, left // CASES_PER_EXAMPLE))
        # A tenant each: sooner or later a made-up call removes the key of the others.
        key = furnish(api, settings).key
        more = fuzz(api, key, examples, seed, phases, MAX_SECONDS)
        report.calls += more.calls
        report.failures = more.failures | report.failures
        report.errors += more.errors
        seed += 1
        sys.stdout.write(f"{report.num_known} calls, {len(report.failures)} failures\n")
        sys.stdout.flush()
    return report


def _write(database: str, run: dict[str, Any]) -> None:
    """Write a run down, beside the one on the other database."""
    path = RESULTS / "fuzz.json"
    runs = json.loads(path.read_text())["raw"] if path.exists() else {}
    runs = dict(sorted({**runs, database: run}.items()))
    rows = []
    for name, each in runs.items():
        crashes = sum(n for status, n in each["by_status"].items() if int(status) >= 500)
        enough = each["calls_with_a_key"] >= FULL
        broken = len(each["failures"]) + len(each["errors"])
        rows += [
            Row(f"{name}: calls with a key", f"{each['calls_with_a_key']}", f">= {FULL}", enough),
            Row(f"{name}: answers of 500 and above", f"{crashes}", "0", crashes == 0),
            Row(f"{name}: checks that broke", f"{broken}", "0", broken == 0),
        ]
    write(
        "fuzz",
        "Made-up calls",
        'make fuzz; make fuzz ARGS="--postgres"',
        [
            "Schemathesis makes calls up from the OpenAPI document and holds every answer against "
            f"it, within {MAX_SECONDS:g} s each; the application is called in its own process.",
            *(
                f"{name}: {each['calls']} calls in {each['seconds']} s, {each['at']}, commit "
                f"{each['commit']}, seed {each['seed']}; {each['hardware']}."
                for name, each in runs.items()
            ),
        ],
        rows,
        runs,
    )


def _silent(*_: object) -> Any:
    raise structlog.DropEvent


if __name__ == "__main__":
    sys.exit(main())
