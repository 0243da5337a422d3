"""A client that knows what the public API says, and nothing else."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import httpx

Json = dict[str, Any]
TERMINAL = ("succeeded", "failed", "cancelled")


class Client:
    """The calls of the main job.

    Args:
        url: of the service.
        key: API key.
    """

    def __init__(self, url: str, key: str) -> None:
        self.http = httpx.Client(
            base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def get(self, path: str) -> Json:
        """Body of a resource."""
        return self._body(self.http.get(path), 200)

    def upload(self, path: str, file: Path, metadata: Json) -> Json:
        """Create a dataset or a model from a file."""
        with file.open("rb") as stream:
            answer = self.http.post(
                path, data={"metadata": json.dumps(metadata)}, files={"file": stream}
            )
        return self._body(answer, 201)

    def forget(self, key: str, model: str, forget: Json, **fields: Any) -> Json:
        """Send an unlearn request."""
        answer = self.http.post(
            "/unlearn-requests",
            json={"model": model, "forget": forget, **fields},
            headers={"Idempotency-Key": key},
        )
        assert answer.headers["Location"].startswith("/unlearn-requests/")
        return self._body(answer, 202)

    def wait(self, path: str, field: str, *ends: str, seconds: float = 120.0) -> Json:
        """Poll until ``field`` (dotted) has one of these values."""
        deadline = time.monotonic() + seconds
        while True:
            body: Any = self.get(path)
            value = body
            for name in field.split("."):
                value = value[name]
            if value in ends:
                return dict(body)
            assert time.monotonic() < deadline, f"{path} {field} stays {value}: {body}"
            time.sleep(0.1)

    def job(self, job_id: str, seconds: float = 120.0) -> Json:
        """The job in its terminal state."""
        return self.wait(f"/jobs/{job_id}", "status", *TERMINAL, seconds=seconds)

    def sha256(self, path: str) -> str:
        """Digest of what a download delivers."""
        digest = hashlib.sha256()
        with self.http.stream("GET", path) as answer:
            assert answer.status_code == 200
            for chunk in answer.iter_bytes():
                digest.update(chunk)
        return digest.hexdigest()

    @staticmethod
    def _body(answer: httpx.Response, status: int) -> Json:
        assert answer.status_code == status, f"{answer.request.url}: {answer.text}"
        body: Json = answer.json()
        return body
