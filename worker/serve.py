"""``python -m worker.serve``: the embedded service, API and worker in one process.

It needs nothing but a folder: SQLite, blobs and secrets lie there, and a file lock keeps a second
service out. Celery's ``memory://`` broker rings a worker in a thread; the runner stays a child.
With a real broker it refuses to start: run the API and ``celery -A worker.main worker`` instead.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import IO

import structlog
import uvicorn
from celery.worker import WorkController, state

from app import logs, tracing
from app.bell import celery, listen_to
from app.settings import Settings, get_settings, write_private
from app.store import jobs, keyed, keys
from app.store.session import configure, transaction, upgrade
from worker import floors
from worker.station import station
from worker.sweep import Sweeper

STOP_SECONDS = 55.0
"""How long the worker thread may take to end; its runner is ended before."""

_log = structlog.get_logger(__name__)


class WorkerThread(threading.Thread):
    """Celery's worker without a process of its own and without signal handlers."""

    def __init__(self) -> None:
        super().__init__(name="worker", daemon=True)
        self._here = station()
        self.failed = False

    def run(self) -> None:
        """Work until ``stop``; the runners belong to this thread and end with it."""
        here = self._here
        here.bench.refill()
        sweeper = Sweeper(here.name, "embedded", here.sandbox, here.memory)
        sweeper.start()
        try:
            WorkController(
                app=celery,
                include=["worker.jobs"],
                pool_cls="solo",
                concurrency=1,
                without_gossip=True,
                without_mingle=True,
                without_heartbeat=True,
            ).start()
        finally:
            if not here.closing.is_set():
                # A service that does no work must not look alive: end the whole of it.
                self.failed = True
                os.kill(os.getpid(), signal.SIGTERM)
            sweeper.stop()
            here.close()

    def stop(self) -> None:
        """Give the job at work back and end the thread."""
        self._here.closing.set()
        state.should_stop = 0  # type: ignore[assignment]  # an exit status, see maybe_shutdown
        self.join(STOP_SECONDS)


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    settings = _settings()
    if fault := floors.fault():
        sys.exit(fault)
    logs.configure(settings)
    tracing.start(settings)
    lock = _lock(settings.data_dir)
    _take_over(settings)
    stopping = threading.Event()
    # uvicorn raises the signal again once it has closed; ours must survive that to clean up.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    listen_to(settings.worker_needs)
    worker = WorkerThread()
    worker.start()
    try:
        started = _serve_api(settings, stopping)
    finally:
        worker.stop()
        tracing.stop()
        lock.close()
    if worker.failed or not started:
        sys.exit(1)


def _serve_api(settings: Settings, stopping: threading.Event) -> bool:
    """Serve the API until a signal comes; return whether it ever listened."""
    # Imported only now: it loads torch, and so does the first runner meanwhile.
    from app.main import OPTIONS, api

    config = uvicorn.Config(api, host=settings.host, port=settings.port, workers=1, **OPTIONS)
    server = uvicorn.Server(config)
    server.should_exit = stopping.is_set()
    server.run()
    return server.started


def _settings() -> Settings:
    parser = argparse.ArgumentParser(prog="python -m worker.serve", description=__doc__)
    parser.add_argument("--host", help="address to listen on (LETHE_HOST)")
    parser.add_argument("--port", type=int, help="port to listen on (LETHE_PORT)")
    given = {name: value for name, value in vars(parser.parse_args()).items() if value is not None}
    settings = get_settings()
    if settings.broker_url != "memory://":
        sys.exit(
            "LETHE_BROKER_URL names a broker, and this command is API and worker in one process "
            "without one. Unset it, or run `python -m app.main` and "
            "`celery -A worker.main worker` instead."
        )
    if given:
        # Validated anew: what does on this machine alone may be refused beyond it.
        settings = Settings(**{**settings.model_dump(include=settings.model_fields_set), **given})
        configure(settings)
    return settings


def _lock(data_dir: Path) -> IO[str]:
    """Create the data folder and lock it for the life of this process."""
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = (data_dir / "serve.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"another service uses {data_dir}; stop it, or set LETHE_DATA_DIR")
    return lock


def _take_over(settings: Settings) -> None:
    """Bring the database up to date and put the affairs of a dead predecessor in order."""
    upgrade()
    if fault := keyed.pepper_fault():
        sys.exit(fault)
    if settings.embedded_database:
        # The lock says that nobody else is alive, so every lease and every draft is a dead one's.
        if (settings.data_dir / "scratch").exists():
            shutil.rmtree(settings.data_dir / "scratch")
        with transaction() as session:
            freed = jobs.free_all(session)
        _log.info("predecessor_leases_freed", jobs=freed)
    with transaction() as session:
        key = keys.bootstrap(session)
        if key is not None:
            # Before the commit: a key is made once, and of one that is not in a file nobody knows.
            path = settings.data_dir / "bootstrap.key"
            path.unlink(missing_ok=True)
            write_private(path, key + "\n")
    if key is not None:
        sys.stdout.write(
            f"API key with every scope, good for a year, shown once and kept in {path}:\n{key}\n"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main()
