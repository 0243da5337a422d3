"""The service as a client sees it: start the embedded form, call it, follow a job."""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from app.settings import Settings, child_environment

Json = dict[str, Any]
START_SECONDS = 120.0


class Service:
    """The handful of calls that the main job needs.

    Args:
        url: base URL of the service.
        key: API key.
    """

    def __init__(self, url: str, key: str) -> None:
        self.url = url
        self.key = key
        self.http = httpx.Client(
            base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=90
        )

    def get(self, path: str) -> Json:
        """Return a resource; raise on any problem document."""
        return _checked(self.http.get(path))

    def upload(self, path: str, file: Path, metadata: Json) -> Json:
        """Send a file with its metadata as multipart; return what was created."""
        with file.open("rb") as stream:
            return _checked(
                self.http.post(
                    path, data={"metadata": json.dumps(metadata)}, files={"file": stream}
                )
            )

    def wait_ready(self, path: str, status: Callable[[Json], str]) -> Json:
        """Poll until ``status`` of the resource is ``ready``; raise if checking it failed."""
        while True:
            body = _checked(self.http.get(path, headers={"Prefer": "wait=30"}))
            if status(body) == "ready":
                return body
            if status(body) != "validating" or body.get("latest_version", body)["rejection"]:
                raise RuntimeError(f"{path} is {status(body)}: {json.dumps(body)}")

    def forget(self, key: str, body: Json) -> Json:
        """Send an unlearn request under an idempotency key."""
        answer = self.http.post("/unlearn-requests", json=body, headers={"Idempotency-Key": key})
        return _checked(answer)

    def follow(self, job_id: str, interval: float = 0.15) -> Iterator[Json]:
        """Yield the job until it is in a terminal state, at most every ``interval`` seconds."""
        while True:
            job = self.get(f"/jobs/{job_id}")
            yield job
            if job["status"] in ("succeeded", "failed", "cancelled"):
                return
            time.sleep(interval)

    def download(self, path: str, target: Path) -> str:
        """Stream a checkpoint to ``target`` and return the sha256 of what arrived."""
        digest = hashlib.sha256()
        with self.http.stream("GET", path) as answer, target.open("wb") as file:
            answer.raise_for_status()
            for chunk in answer.iter_bytes():
                digest.update(chunk)
                file.write(chunk)
        return digest.hexdigest()


def _checked(answer: httpx.Response) -> Json:
    """Return the JSON body, or raise with the problem document's own words."""
    if answer.is_error:
        raise RuntimeError(f"{answer.request.method} {answer.request.url}: {answer.text}")
    body: Json = answer.json()
    return body


@contextmanager
def embedded(settings: Settings) -> Iterator[Service]:
    """Run ``python -m worker.serve`` on a free port as a child and stop it at the end."""
    port = _free_port(settings.host)
    log = settings.data_dir / "demo-service.log"
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with log.open("wb") as sink:
        process = subprocess.Popen(  # noqa: S603  # our own module, fixed arguments
            [sys.executable, "-m", "worker.serve", "--port", str(port)],
            env=child_environment(settings),
            stdout=sink,
            stderr=sink,
        )
    try:
        url = f"http://{settings.host}:{port}"
        _await_health(url, process, log)
        yield Service(url, (settings.data_dir / "bootstrap.key").read_text().strip())
    finally:
        process.terminate()
        process.wait(90)  # its worker may take a minute to give a job back


def _free_port(host: str) -> int:
    """Return a port the system picks: of two services that start at once each gets its own."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _await_health(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the service answers; raise with its log if it ends or never does."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/healthz", timeout=2).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise RuntimeError(f"the service did not start:\n{log.read_text()[-4000:]}")
