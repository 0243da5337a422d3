"""The service as its operator runs it: real processes, a temporary folder, a free port."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = STOP_SECONDS = 300.0
"""Patience with a machine that is busy with other things; what has died is seen at once."""

PEPPER = "a pepper for tests, long enough to be taken"
Json = dict[str, Any]


def free_port() -> int:
    """A port on which nothing listens right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Stack:
    """Processes of the service under test.

    Args:
        folder: data folder and logs go here.
        settings: ``LETHE_`` settings without their prefix, lower case.
    """

    def __init__(self, folder: Path, **settings: object) -> None:
        self.folder = folder
        self.data_dir = folder / "data"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._begun_at: dict[str, int] = {}
        """Where in its log a process began to write."""
        self._settings = {
            "data_dir": self.data_dir,
            "port": self.port,
            "torch_threads": 1,
            **settings,
        }

    @property
    def environment(self) -> Mapping[str, str]:
        """What the processes see; nothing of the test's own settings."""
        return {
            "PATH": f"{Path(sys.executable).parent}:{os.defpath}",
            "HOME": str(self.folder),
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
            **{f"LETHE_{name.upper()}": str(value) for name, value in self._settings.items()},
        }

    def spawn(self, name: str, *arguments: str) -> None:
        """Start a process whose output is appended to ``<name>.log``."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self._begun_at[name] = log.tell()
            self.processes[name] = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT,
                env=dict(self.environment),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def run(self, *arguments: str) -> str:
        """Run a command to its end and return what it printed."""
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=dict(self.environment),
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout

    def kill(self, name: str) -> None:
        """``kill -9`` one process, and nothing else."""
        process = self.processes.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def configure(self, **settings: object) -> None:
        """Change settings of the processes that are started from now on."""
        self._settings |= settings

    def send_signal(self, name: str, number: int) -> None:
        """Send a signal to one process."""
        self.processes[name].send_signal(number)

    def wait_for_death(self, name: str, seconds: float = 600.0) -> int:
        """Wait until a process has ended by itself; return its exit status."""
        try:
            status = self.processes[name].wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{name} lives on:\n{self.log(name)}") from None
        del self.processes[name]
        return status

    def stop_one(self, name: str) -> int:
        """SIGTERM one process; return its exit status."""
        self.processes[name].terminate()
        return self.processes.pop(name).wait(STOP_SECONDS)

    def stop(self) -> dict[str, int]:
        """SIGTERM all processes; return their exit statuses, and leave none behind."""
        for process in self.processes.values():
            process.terminate()
        try:
            return {name: each.wait(STOP_SECONDS) for name, each in self.processes.items()}
        finally:
            for process in self.processes.values():
                process.kill()
                process.wait()
            self.processes.clear()

    def wait_until(self, path: str) -> None:
        """Wait until ``path`` answers 200."""
        deadline = time.monotonic() + START_SECONDS
        # One client for all tries: making one reads every certificate of the machine.
        with httpx.Client(base_url=self.url, timeout=5) as client:
            while time.monotonic() < deadline:
                for name, process in self.processes.items():
                    assert process.poll() is None, f"{name} ended:\n{self.log(name)}"
                with contextlib.suppress(httpx.TransportError):
                    if client.get(path).status_code == 200:
                        return
                time.sleep(0.1)
        raise AssertionError(f"no {path}:\n" + "\n".join(self.log(name) for name in self.processes))

    def wait_for_line(self, name: str, text: str) -> None:
        """Wait until a process that was started last has written a text to its log."""
        deadline = time.monotonic() + START_SECONDS
        with (self.folder / f"{name}.log").open("rb") as log:
            log.seek(self._begun_at[name])
            written = b""
            while text.encode() not in written:
                written += log.read()
                assert self.processes[name].poll() is None, f"{name} ended:\n{self.log(name)}"
                assert time.monotonic() < deadline, f"{name} never says {text}:\n{self.log(name)}"
                time.sleep(0.05)

    def log(self, name: str) -> str:
        """End of the output of a process."""
        return (self.folder / f"{name}.log").read_text()[-6000:]


class Embedded(Stack):
    """API and worker in one process, SQLite."""

    def start(self) -> None:
        """Start, and wait until it is ready."""
        self.spawn("serve", "-m", "worker.serve")
        self.wait_until("/readyz")

    @property
    def key(self) -> str:
        """The bootstrap key."""
        return (self.data_dir / "bootstrap.key").read_text().strip()


class Distributed(Stack):
    """API and Celery worker apart, PostgreSQL and Redis."""

    def __init__(self, folder: Path, database_url: str, broker_url: str, **settings: object):
        super().__init__(
            folder, database_url=database_url, broker_url=broker_url, pepper=PEPPER, **settings
        )
        self.key = ""

    def start(self) -> None:
        """Migrate, make a key, start both processes, wait until they are ready."""
        self.prepare()
        self.start_api()
        self.start_worker()
        self.wait_until("/readyz")

    def prepare(self) -> None:
        """Migrate and make a key."""
        self.run("-m", "alembic", "upgrade", "head")
        self.key = self.run(
            "-m", "app.keys", "create", "--tenant", "test", "--scopes", "all"
        ).split()[-1]

    def start_api(self) -> None:
        """Start the API."""
        self.spawn("api", "-m", "app.main")

    def start_worker(self, name: str = "worker") -> None:
        """Start a worker."""
        arguments = ["-m", "celery", "-A", "worker.main", "worker", "--loglevel", "INFO"]
        self.spawn(name, *arguments, "-n", f"{name}@%h")
