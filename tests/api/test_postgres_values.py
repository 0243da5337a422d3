"""Values that PostgreSQL cannot hold, over PostgreSQL: each is refused before it gets there.

SQLite takes NUL, so the rows of bad input would not tell there; ``make slow`` has all of them over
PostgreSQL.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import pytest
from fastapi.testclient import TestClient

from app.settings import Settings
from app.store import tables

from . import files
from .test_transport_rows import JSON_ROWS
from .world import Tenant, assert_problem

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.parametrize("settings", ["postgres"], indirect=True),
]
BODIES = {name: row for name, row in JSON_ROWS.items() if name.startswith(("A18", "A19", "A20"))}
FORGET: dict[str, tuple[dict[str, Any], str]] = {
    "record": ({"type": "record_ids", "record_ids": ["r0", "r\0"]}, "invalid_characters"),
    "subject": ({"type": "subject", "subject_ref": "person\0"}, "invalid_characters"),
    "subject-of-a-surrogate": ({"type": "subject", "subject_ref": "\ud800"}, "invalid_characters"),
    "class-beyond-int64": ({"type": "class", "class": 2**63}, "invalid_number"),
}


def test_these_are_the_values(settings: Settings) -> None:
    assert settings.database.startswith("postgresql")
    assert len(BODIES) == 5


@pytest.mark.parametrize("row", BODIES)
def test_in_a_body(tenant: Tenant, row: str) -> None:
    raw, status, code = BODIES[row]
    headers = {"Content-Type": "application/json"}
    answer = tenant.call("POST", "/api-keys", content=raw, headers=headers)
    assert_problem(answer, status, code)
    metadata = b'{"name": "a", "metadata": {"n": 9223372036854775808}}'
    raw = metadata if row == "A18-beyond-int64" else raw
    assert_problem(tenant.upload("/datasets", files.parquet(), raw), status, code)
    assert tenant.count(tables.ApiKey) == 1


def test_in_what_is_to_be_forgotten(tenant: Tenant) -> None:
    model_id = tenant.ready_model()
    for forget, code in FORGET.values():
        # httpx refuses to encode a lone surrogate; json escapes it.
        body = json.dumps({"model": model_id, "forget": forget})
        headers = {"Content-Type": "application/json", "Idempotency-Key": "key"}
        answer = tenant.call("POST", "/unlearn-requests", content=body, headers=headers)
        assert_problem(answer, 422, code)
    assert tenant.count(tables.Request) == 0


def test_in_an_address(tenant: Tenant) -> None:
    part = quote("\N{LATIN SMALL LETTER E WITH ACUTE}\0b")
    for path in ("/models/mdl_", "/datasets/", "/jobs/job_", "/unlearn-requests/", "/unlearners/"):
        assert_problem(tenant.get(f"{path}{part}"), 404, "not_found")
    for query in ("cursor", "after", "before", "limit", "status", "model", "colour"):
        for path in ("/models", "/datasets", "/jobs", "/unlearn-requests", "/api-keys"):
            answer = tenant.get(f"{path}?{query}={part}")
            assert answer.status_code in (400, 404, 422), (path, query, answer.text)


def test_in_a_header(tenant: Tenant, http: TestClient) -> None:
    model_id = tenant.ready_model()
    for header in (b"a\0b", b"\xff\xfe"):
        headers = {**tenant.headers(), "Idempotency-Key": header}
        body = {"model": model_id, "forget": {"type": "record_ids", "record_ids": ["r0"]}}
        answer = http.post("/unlearn-requests", json=body, headers=headers)
        assert 400 <= answer.status_code < 500, answer.text
