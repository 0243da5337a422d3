"""A service with two tenants, and what a worker would have done to their things."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient
from httpx2 import Response
from sqlalchemy import select, update

from app.store import keys, tables
from app.store.blobs import blobs
from app.store.keyed import subject_hash
from app.store.session import reading, transaction

from . import files

_numbers = count(1)
FINDING = {
    "audit": "sanity",
    "measure": "non_finite",
    "scope": "parameters and buffers",
    "value": 0.0,
    "unit": "values",
    "examples": 10,
}


@dataclass
class Tenant:
    """A tenant with a key, and shortcuts for its calls."""

    http: TestClient
    id: str
    key: str
    scratch: Path
    made: dict[str, str] = field(default_factory=dict)

    def headers(self, **more: str) -> dict[str, str]:
        """Headers with the key."""
        return {"Authorization": f"Bearer {self.key}"} | more

    def call(self, method: str, path: str, **options: Any) -> Response:
        """Send a request with the key."""
        headers = self.headers(**options.pop("headers", {}))
        return self.http.request(method, path, headers=headers, **options)

    def get(self, path: str, **headers: str) -> Response:
        """Send a GET."""
        return self.call("GET", path, headers={k.replace("_", "-"): v for k, v in headers.items()})

    def key_with(self, *scopes: str) -> str:
        """Make another key."""
        with transaction() as session:
            return keys.create(session, self.id, "other", [*scopes], None)[1]

    def upload(
        self,
        path: str,
        content: bytes,
        metadata: dict[str, Any] | bytes,
        *,
        filename: str = "f.bin",
        **headers: str,
    ) -> Response:
        """Send a file as multipart."""
        raw = metadata if isinstance(metadata, bytes) else json.dumps(metadata).encode()
        parts = {
            "metadata": ("m.json", raw, "application/json"),
            "file": (filename, content, "application/octet-stream"),
        }
        return self.call(
            "POST",
            path,
            files=parts,
            headers={k.replace("_", "-"): v for k, v in headers.items()},
        )

    def finished_upload(self, content: bytes) -> str:
        """Upload a file for later; return the id of the upload."""
        headers = {
            "Tus-Resumable": "1.0.0",
            "Upload-Length": str(len(content)),
            "Content-Type": "application/offset+octet-stream",
        }
        answer = self.call("POST", "/uploads", content=content, headers=headers)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def dataset(self, content: bytes | None = None, **metadata: Any) -> str:
        """Upload a dataset that is not checked yet."""
        answer = self.upload(
            "/datasets",
            files.parquet() if content is None else content,
            {"name": "data", **metadata},
        )
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def ready_dataset(self, records: int = 12, classes: int = 2, **metadata: Any) -> str:
        """Upload a dataset, and do what the ingest job does."""
        dataset_id = self.dataset(**metadata)
        with transaction() as session:
            row = session.get_one(tables.Dataset, (self.id, dataset_id))
            row.status, row.modality = "ready", "features"
            row.num_train, row.num_holdout, row.num_classes = records - 2, 2, classes
            for number in range(records):
                session.add(
                    tables.Record(
                        tenant_id=self.id,
                        dataset_id=dataset_id,
                        row=number,
                        record_id=f"r{number}",
                        label=number % classes,
                        split="holdout" if number >= records - 2 else "train",
                        subject_hash=subject_hash(self.id, f"person-{number % 3}"),
                    )
                )
        self.finish_jobs(tables.Job.dataset_id == dataset_id)
        return dataset_id

    def metadata(self, dataset_id: str, **changes: Any) -> dict[str, Any]:
        """Metadata of a model on that dataset."""
        return {
            "name": "model",
            "architecture": files.ARCHITECTURE,
            "preprocessing": {},
            "dataset": dataset_id,
            "holdout": dataset_id,
            "recipe": files.RECIPE,
            **changes,
        }

    def post_model(
        self,
        content: bytes | None = None,
        dataset_id: str = "",
        filename: str = "f.bin",
        **changes: Any,
    ) -> Response:
        """Upload a model."""
        dataset_id = dataset_id or self.made.setdefault("dataset", self.ready_dataset())
        content = files.weights() if content is None else content
        metadata = self.metadata(dataset_id, **changes)
        return self.upload("/models", content, metadata, filename=filename)

    def model(self, **options: Any) -> str:
        """Upload a model that is not prepared yet."""
        answer = self.post_model(**options)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def ready_model(self, **options: Any) -> str:
        """Upload a model, and do what the prepare job does."""
        model_id = self.model(**options)
        self.set_version(model_id, status="ready", prepared_at=datetime.now(UTC))
        self.finish_jobs(tables.Job.model_id == model_id)
        return model_id

    def set_version(self, model_id: str, **values: Any) -> None:
        """Change the latest version of a model."""
        with transaction() as session:
            newest = (
                select(tables.Version.id)
                .where(tables.Version.model_id == model_id)
                .order_by(tables.Version.number.desc())
                .limit(1)
            )
            session.execute(
                update(tables.Version)
                .where(tables.Version.id == newest.scalar_subquery())
                .values(**values)
            )

    def finish_jobs(self, which: Any) -> None:
        """Let jobs have succeeded."""
        with transaction() as session:
            session.execute(update(tables.Job).where(which).values(status="succeeded"))

    def forget(
        self, model_id: str, forget: dict[str, Any] | None = None, key: str = "", **more: Any
    ) -> Response:
        """Ask for something to be forgotten."""
        body = {
            "model": model_id,
            "forget": forget or {"type": "record_ids", "record_ids": ["r0"]},
            **more,
        }
        key = key or f"key-{next(_numbers)}"
        return self.call("POST", "/unlearn-requests", json=body, headers={"Idempotency-Key": key})

    def publish(self, job_id: str, content: bytes | None = None) -> str:
        """Let a job have published the next version of its model; return the version's id."""
        content = files.weights() if content is None else content
        with transaction() as session:
            job = session.get_one(tables.Job, (self.id, job_id))
            model = session.get_one(tables.Model, (self.id, job.model_id))
            parent = session.get_one(tables.Version, (self.id, model.current_version_id))
            blob = f"{self.id}/models/{model.id}/v{parent.number + 1}.safetensors"
            scratch = blobs().scratch()
            (scratch / "w").write_bytes(content)
            blobs().adopt(scratch / "w", blob)
            scratch.rmdir()
            child = tables.Version(
                tenant_id=self.id,
                id=f"ver_{job.id[4:]}",
                model_id=model.id,
                number=parent.number + 1,
                parent_id=parent.id,
                job_id=job.id,
                status="ready",
                outcome="erased_exact",
                digest="0" * 64,
                size_bytes=len(content),
                blob=blob,
            )
            session.add(child)
            session.flush()
            parent.status, parent.withdrawn_at = "withdrawn", datetime.now(UTC)
            model.current_version_id = child.id
            job.status, job.progress = "succeeded", 1.0
            job.result = {
                "outcome": "erased_exact",
                "version": child.id,
                "version_number": child.number,
                "published": 0,
                "reason": "retrained",
                "cost": {},
            }
            session.execute(
                update(tables.Request)
                .where(tables.Request.job_id == job_id)
                .values(status="completed", outcome="erased_exact", applied_version_id=child.id)
            )
            return child.id

    def audit(self, model_id: str, request_id: str, ref: str = "1") -> str:
        """Let an audit of a version have found something; return its job's id."""
        answer = self.call(
            "POST", f"/models/{model_id}/versions/{ref}/audits", json={"request": request_id}
        )
        assert answer.status_code == 202, answer.text
        job_id = str(answer.json()["id"])
        with transaction() as session:
            job = session.get_one(tables.Job, (self.id, job_id))
            report = tables.AuditReport(
                tenant_id=self.id,
                id=f"adt_{job_id[4:]}",
                version_id=job.version_id,
                job_id=job_id,
                request_id=request_id,
                options={name: job.options[name] for name in job.options if name != "request"},
                findings=[FINDING],
            )
            session.add(report)
            job.status, job.progress = "succeeded", 1.0
            job.result = {"version": job.version_id, "version_number": 1}
        return job_id

    def count(self, table: Any) -> int:
        """How many rows the tenant has in a table."""
        with reading() as session:
            return len(session.scalars(select(table).where(table.tenant_id == self.id)).all())


def assert_problem(
    answer: Response, status: int, code: str, *, scratch: Path | None = None
) -> dict[str, Any]:
    """Check that an answer is this problem, and that nothing was left lying about."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert body["code"] == code, body
    assert body["status"] == status
    assert body["type"] == f"urn:lethe:problem:{code.replace('_', '-')}"
    assert body["request_id"] == answer.headers["x-request-id"]
    assert {"title", "detail", "instance", "errors", "retryable"} <= set(body)
    if scratch is not None and scratch.exists():
        assert list(scratch.iterdir()) == []
    return body
