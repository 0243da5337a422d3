"""Processes of the service under measurement: the embedded form, or the API alone."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from benchmarks.hardware import ROOT
from worker.demo.service import Service

START_SECONDS = 90.0


@dataclass(frozen=True)
class Place:
    """Where a service keeps its state; two processes with the same place are the same service."""

    folder: Path
    database_url: str = ""
    broker_url: str = ""
    """Where bells are rung; empty for the embedded form and for an API without workers."""
    pepper: str = field(default_factory=lambda: secrets.token_urlsafe(48))
    settings: Mapping[str, str] = field(default_factory=dict)
    """Further ``LETHE_...`` settings."""

    def environment(self) -> dict[str, str]:
        """All that the process gets to know."""
        environment = {
            "PATH": os.defpath,
            "LETHE_DATA_DIR": str(self.folder),
            "LETHE_PEPPER": self.pepper,
            **self.settings,
        }
        if self.database_url:
            environment["LETHE_DATABASE_URL"] = self.database_url
        if self.broker_url:
            environment["LETHE_BROKER_URL"] = self.broker_url
        return environment

    def key(self) -> str:
        """The key with every scope that the embedded service made at its first start."""
        return (self.folder / "bootstrap.key").read_text().strip()


@dataclass(frozen=True)
class Running:
    """A service that answers."""

    service: Service
    process: subprocess.Popen[bytes]
    port: int


@contextmanager
def embedded(place: Place, module: str = "worker.serve") -> Iterator[Running]:
    """Run API and worker in one process; ``module`` may name a variant of it."""
    port = free_port()
    with _running(["-m", module, "--port", str(port)], place, port) as running:
        yield running


@contextmanager
def api_alone(place: Place) -> Iterator[Running]:
    """Run the API and no worker; ``place`` must have been prepared by ``embedded``."""
    port = free_port()
    arguments = ["-m", "uvicorn", "app.main:api", "--port", str(port), "--no-access-log"]
    with _running(arguments, place, port) as running:
        yield running


@contextmanager
def celery_worker(place: Place) -> Iterator[subprocess.Popen[bytes]]:
    """Run a Celery worker and wait until it is ready; ``place`` must name a broker."""
    log = place.folder / "worker.log"
    arguments = ["-m", "celery", "-A", "worker.main", "worker", "--loglevel", "INFO"]
    process = _spawn(arguments, place, log)
    try:
        deadline = time.monotonic() + START_SECONDS
        while "worker_ready" not in log.read_text():
            if time.monotonic() > deadline or process.poll() is not None:
                raise RuntimeError(f"the worker did not start:\n{log.read_text()[-4000:]}")
            time.sleep(0.1)
        yield process
    finally:
        process.terminate()
        process.wait(60)


def free_port() -> int:
    """Return a port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _running(arguments: list[str], place: Place, port: int) -> Iterator[Running]:
    place.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    log = place.folder / "service.log"
    process = _spawn(arguments, place, log)
    url = f"http://127.0.0.1:{port}"
    try:
        _await_health(url, process, log)
        yield Running(Service(url, place.key()), process, port)
    finally:
        process.terminate()
        process.wait(60)


def _spawn(arguments: list[str], place: Place, log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as sink:
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=place.environment(),
            stdout=sink,
            stderr=sink,
        )


def _await_health(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the service answers; raise with the end of its log if it ends or never does."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/healthz", timeout=2).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise RuntimeError(f"the service did not start:\n{log.read_text()[-4000:]}")
