"""A client that a generator made of the OpenAPI document does the main job."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tests.e2e.client import TERMINAL
from tests.e2e.stack import Embedded
from worker.demo import digits

pytestmark = pytest.mark.slow

PACKAGE = "lethe_client"
CONFIG = {
    # The tus protocol's own name for bytes.
    "content_type_overrides": {"application/offset+octet-stream": "application/octet-stream"},
    "post_hooks": [],
}
POLLS = 60
"""Each waits up to half a minute at the service."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    stack = Embedded(tmp_path_factory.mktemp("service"))
    stack.start()
    yield stack
    stack.stop()


@pytest.fixture(scope="module")
def document(service: Embedded) -> Any:
    return httpx.get(f"{service.url}/openapi.json").raise_for_status().json()


@pytest.fixture(scope="module")
def generated(document: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the generated package, which can be imported; nothing was skipped."""
    folder = tmp_path_factory.mktemp("generated")
    source, config, package = folder / "openapi.json", folder / "config.json", folder / PACKAGE
    source.write_text(json.dumps(document))
    config.write_text(json.dumps(CONFIG))
    arguments = ["--path", source, "--config", config, "--meta", "none", "--output-path", package]
    ended = subprocess.run(
        [
            sys.executable,
            "-m",
            "openapi_python_client",
            "generate",
            "--fail-on-warning",
            *arguments,
        ],
        cwd=folder,
        env={"PATH": os.defpath, "NO_COLOR": "1"},
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout
    assert ended.stdout.split("\n") == [f"Generating {package}", ""], "it warns of something"
    sys.path.insert(0, str(folder))
    yield package
    sys.path.remove(str(folder))


class Generated:
    """The generated client, by the names of the document's operations.

    Args:
        service: that it calls.
        package: folder of the generated package.
    """

    def __init__(self, service: Embedded, package: Path) -> None:
        self._folders = {file.stem: file.parent.name for file in package.glob("api/*/*.py")}
        client = importlib.import_module(f"{PACKAGE}.client")
        self._client = client.AuthenticatedClient(
            base_url=service.url, token=service.key, timeout=httpx.Timeout(90)
        )
        self.models = importlib.import_module(f"{PACKAGE}.models")
        self.file = importlib.import_module(f"{PACKAGE}.types").File

    def __enter__(self) -> Generated:
        self._client.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._client.__exit__(*exception)

    def answer(self, operation: str, *path: str, **arguments: Any) -> Any:
        """Call an operation; return its status and what the client made of the answer."""
        name = f"{PACKAGE}.api.{self._folders[operation]}.{operation}"
        module = importlib.import_module(name)
        return module.sync_detailed(*path, client=self._client, **arguments)

    def call(self, operation: str, *path: str, **arguments: Any) -> Any:
        """Call an operation that succeeds; return what came back, in a shape of its own."""
        answer = self.answer(operation, *path, **arguments)
        assert 200 <= answer.status_code < 300, answer.content
        return answer.parsed

    def wait(self, operation: str, item: str, is_done: Callable[[Any], bool]) -> Any:
        """Read something until it is done."""
        for _ in range(POLLS):
            found = self.call(operation, item, prefer="wait=30")
            if is_done(found):
                return found
        raise AssertionError(f"{operation} {item} is never done: {found}")

    def job(self, job_id: str) -> Any:
        """The job once it succeeded."""
        job = self.wait("get_job", job_id, lambda job: job.status in TERMINAL)
        assert job.status == "succeeded", job
        return job


def test_every_operation_and_shape_is_there(document: Any, generated: Path) -> None:
    operations = {
        operation["operationId"]
        for path in document["paths"].values()
        for operation in path.values()
    }
    made = {file.stem for file in generated.glob("api/*/*.py")} - {"__init__"}
    assert made == operations
    shapes = {file.stem.replace("_", "") for file in generated.glob("models/*.py")}
    schemas = document["components"]["schemas"]
    assert {name.replace("_", "").lower() for name in schemas} <= shapes


def test_the_main_job_by_a_generated_client(service: Embedded, generated: Path, home: Path) -> None:
    with Generated(service, generated) as client:
        shapes = client.models
        model = register(client, home)
        request = client.call(
            "create_unlearn_request",
            body=shapes.UnlearnRequestCreate(
                model=model,
                forget=shapes.ForgetRecords(type_="record_ids", record_ids=trained_on(home)[:20]),
                policy=shapes.UnlearnRequestCreatePolicy.STANDARD,
            ),
            idempotency_key="records",
        )
        job = client.job(request.job_id)
        assert job.result.outcome == "erased_exact"
        request = client.call("get_unlearn_request", request.id)
        assert (request.status, request.outcome) == ("completed", "erased_exact")
        version = client.call("get_version", model, "2")
        assert (version.number, version.job, version.status) == (2, job.id, "ready")
        assert job.result.version == version.id
        check_measured(client, model, version)
        check_weights(client, model, version)


def register(client: Generated, home: Path) -> str:
    """Upload data and model; return the model's id."""
    shapes = client.models
    with (home / "digits.parquet").open("rb") as stream:
        body = shapes.CreateDatasetFilesBody(
            file=client.file(stream, "digits.parquet"),
            metadata=shapes.DatasetCreate(name="digits"),
        )
        dataset = client.call("create_dataset", body=body)
    dataset = client.wait("get_dataset", dataset.id, lambda item: item.status != "validating")
    assert dataset.status == "ready", dataset
    metadata = shapes.ModelCreate.from_dict(digits.metadata(dataset.id))
    assert isinstance(metadata.architecture, shapes.ConvNetConfig)
    assert isinstance(metadata.recipe.schedule, shapes.OneCycle)
    with (home / "digits.safetensors").open("rb") as stream:
        body = shapes.CreateModelFilesBody(
            file=client.file(stream, "digits.safetensors"), metadata=metadata
        )
        model = client.call("create_model", body=body)
    model = client.wait(
        "get_model", model.id, lambda item: item.latest_version.status != "validating"
    )
    assert model.latest_version.status == "ready", model
    return str(model.id)


def trained_on(home: Path) -> list[str]:
    records = pq.read_table(home / "digits.parquet", columns=["id", "split"])
    return list(records.filter(pc.field("split") == "train")["id"].to_pylist())


def check_measured(client: Generated, model: str, version: Any) -> None:
    """What was measured on a version: by the rung that made it, and by an audit on demand."""
    assert {type(finding) for finding in version.findings} == {client.models.Finding}
    assert {gate.verdict for gate in version.gates} <= {*client.models.GateVerdict}
    asked = client.models.AuditCreate(audits=[client.models.SanityConfig(name="sanity")])
    job = client.call("create_audit", model, version.id, body=asked)
    measured = client.job(job.id).result.findings
    page = client.call("list_version_audits", model, version.id)
    assert [report.job for report in page.data] == [job.id]
    assert page.data[0].findings == measured
    assert measured


def check_weights(client: Generated, model: str, version: Any) -> None:
    """The new checkpoint is what its digest says, and the old one is gone."""
    weights = client.call("download_checkpoint", model, "2").payload.read()
    assert f"sha256:{hashlib.sha256(weights).hexdigest()}" == version.digest
    first = client.call("get_version", model, "1")
    assert first.status == "withdrawn"
    assert first.links["successor"] == version.links["self"]
    old = client.answer("download_checkpoint", model, "1")
    assert old.status_code == HTTPStatus.GONE
    assert isinstance(old.parsed, client.models.Problem)
    assert old.parsed.code == "version_withdrawn"
    gone = client.answer("head_checkpoint", model, "1")
    assert (gone.status_code, gone.parsed) == (HTTPStatus.GONE, None)
    etag = client.answer("get_model", model).headers["ETag"]
    same = client.answer("get_model", model, if_none_match=etag)
    assert (same.status_code, same.parsed) == (HTTPStatus.NOT_MODIFIED, None)
