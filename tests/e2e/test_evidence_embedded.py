"""Evidence on demand through the whole service: reference models, oracles, audits."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e import story
from tests.e2e.client import Client, Json
from tests.e2e.stack import Embedded


@pytest.mark.slow
def test_evidence_on_demand(tmp_path: Path, home: Path) -> None:
    stack = Embedded(tmp_path)
    stack.start()
    try:
        with Client(stack.url, stack.key) as client:
            ids, model = story.register(client, home)
            _reference_models(client, model, ids)
            _oracles(client, model)
            _audits(client, model)
    finally:
        assert stack.stop() == {"serve": 0}


def _done(client: Client, path: str, body: Json) -> Json:
    """Have something done; return its job."""
    answer = client.http.post(path, json=body)
    assert answer.status_code == 202, answer.text
    job = client.job(answer.json()["id"])
    assert job["status"] == "succeeded", job
    return job


def _reference_models(client: Client, model: str, ids: list[str]) -> None:
    """A request is attacked with them record by record; then they are gone, as they saw it."""
    job = _done(client, f"/models/{model}/reference-bank", {"models": 2})
    assert job["result"]["models"] == 2
    assert client.get(f"/models/{model}")["reference_bank"] == {"models": 2}
    forget = {"type": "record_ids", "record_ids": ids[:20]}
    request = client.forget("records", model, forget)
    story.published(client, model, request, parent="1")
    rungs = client.get(f"/jobs/{request['job_id']}")["result"]["rungs_tried"]
    evidence = rungs[-1]["per_request"][request["id"]]
    assert "rmia" in {finding["audit"] for finding in evidence["findings"]}
    assert client.get(f"/models/{model}")["reference_bank"] is None


def _oracles(client: Client, model: str) -> None:
    job = _done(client, f"/models/{model}/versions/2/oracle", {"seed": 1})
    oracle = client.get(f"/models/{model}/versions/{job['result']['version']}")
    assert oracle["role"] == "oracle"
    assert "sha256:" + client.sha256(job["links"]["checkpoint"]) == oracle["digest"]
    assert client.get(f"/models/{model}/versions/@serving")["number"] == 2


def _audits(client: Client, model: str) -> None:
    wanted = ["accuracy", "membership", "oracle_distance"]
    job = _done(client, f"/models/{model}/versions/@serving/audits", {"audits": wanted})
    findings = job["result"]["findings"]
    assert {finding["audit"] for finding in findings} == {*wanted}, "the parent is kept, too"
    version = client.get(f"/models/{model}/versions/2")
    assert [report["job"] for report in version["audits"]] == [job["id"]]
    assert version["audits"][0]["findings"] == findings
