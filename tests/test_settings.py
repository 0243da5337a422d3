"""Which settings are refused at the start, and which are not: one row per combination."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from app.connections import Connection
from app.settings import Settings

PEPPER = "0123456789abcdef" * 2
EXPOSED = {"host": "0.0.0.0"}
PRODUCTION = {
    "database_url": "postgresql://db/lethe",
    "broker_url": "redis://:s3cr3t@redis:6379/0",
    "pepper": PEPPER,
    **EXPOSED,
}

CONNECTION = {"name": "research", "tenants": ["*"]}

BUCKET = {
    "blobs_url": "s3://lethe",
    "blobs_access_key": "a",
    "blobs_secret_key": PEPPER,
}

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "short-pepper": ({"pepper": "short"}, "LETHE_PEPPER"),
    "no-pepper-beside-a-server": ({"database_url": "postgresql://db/lethe"}, "LETHE_PEPPER"),
    "exposed-with-a-default-pepper": ({**PRODUCTION, "pepper": "changeme" * 4}, "LETHE_PEPPER"),
    "exposed-with-one-character": ({**PRODUCTION, "pepper": "x" * 64}, "LETHE_PEPPER"),
    "exposed-docs": ({**PRODUCTION, "docs": True}, "LETHE_DOCS"),
    "exposed-embedded-docs": ({**EXPOSED, "docs": True}, "LETHE_DOCS"),
    "exposed-without-a-limit-of-keys": (
        {**PRODUCTION, "calls_per_minute_per_key": 0},
        "LETHE_CALLS_PER_MINUTE",
    ),
    "exposed-without-a-limit-of-tenants": (
        {**PRODUCTION, "calls_per_minute_per_tenant": 0},
        "LETHE_CALLS_PER_MINUTE",
    ),
    "everybody-is-a-proxy": (
        {**PRODUCTION, "trusted_proxies": ["0.0.0.0/0"]},
        "LETHE_TRUSTED_PROXIES",
    ),
    "every-ipv6-is-a-proxy": ({**EXPOSED, "trusted_proxies": ["::/0"]}, "LETHE_TRUSTED_PROXIES"),
    "guessing-without-a-limit": ({"failed_keys_per_minute": 0}, "failed_keys_per_minute"),
    "role-without-policies": ({"database_tenant_role": "r"}, "LETHE_DATABASE_TENANT_ROLE"),
    "role-beside-a-file": (
        {"database_url": "sqlite:///x.db", "pepper": PEPPER, "database_tenant_role": "r"},
        "LETHE_DATABASE_TENANT_ROLE",
    ),
    "counts-in-a-file": ({"limits_url": "file:///tmp/counts"}, "limits_url"),
    "connection-for-nobody": ({"connections": [{**CONNECTION, "tenants": []}]}, "tenants"),
    "connection-for-a-name": ({"connections": [{**CONNECTION, "tenants": ["acme"]}]}, "tenants"),
    "connections-of-one-name": ({"connections": [CONNECTION, CONNECTION]}, "LETHE_CONNECTIONS"),
    "connection-with-half-a-key": (
        {"connections": [{**CONNECTION, "secret_key": PEPPER}]},
        "access_key",
    ),
    "connection-with-two-secrets": (
        {
            "connections": [
                {**CONNECTION, "access_key": "a", "secret_key": PEPPER, "secret_key_file": "f"}
            ]
        },
        "access_key",
    ),
    "connection-to-an-odd-endpoint": (
        {"connections": [{**CONNECTION, "endpoint": "https://user@host"}]},
        "endpoint",
    ),
    "connection-with-an-open-prefix": (
        {"connections": [{**CONNECTION, "prefix": "released/"}]},
        "prefix",
    ),
    "connection-with-an-unknown-member": (
        {"connections": [{**CONNECTION, "anonymous": True}]},
        "anonymous",
    ),
    "connection-to-our-own-blobs": (
        {"connections": [CONNECTION], "blobs_url": "s3://research/blobs"},
        "LETHE_CONNECTIONS",
    ),
    **{
        f"connection-to-our-own-blobs-{name}": (
            {
                "connections": [{**CONNECTION, "endpoint": theirs}],
                "blobs_url": "s3://research",
                "blobs_endpoint": ours,
            },
            "LETHE_CONNECTIONS",
        )
        for name, ours, theirs in (
            ("by-address", "", "https://s3.us-east-1.amazonaws.com"),
            ("in-capitals", "", "https://S3.US-East-1.AmazonAWS.com"),
            ("of-the-world", "https://s3.us-east-1.amazonaws.com", "https://s3.amazonaws.com"),
            ("by-port", "https://store.example", "https://store.example:443"),
            ("by-plain-port", "http://store:80", "http://STORE."),
        )
    },
    "exposed-with-a-failpoint": ({**EXPOSED, "failpoint": "a=kill"}, "LETHE_FAILPOINT"),
    "connection-in-the-clear": (
        {"connections": [{**CONNECTION, "endpoint": "http://store.example"}]},
        "endpoint",
    ),
    **{
        f"blobs-in-the-clear-{number}": ({**BUCKET, "blobs_endpoint": endpoint}, "BLOBS_ENDPOINT")
        for number, endpoint in enumerate(
            ("http://store.example:9000", "http://10.0.0.7", "http://[2001:db8::1]:9000")
        )
    },
    **{
        f"open-{name}-{number}": ({**PRODUCTION, name: url}, f"LETHE_{name.upper()}")
        for name in ("broker_url", "limits_url")
        for number, url in enumerate(
            (
                "redis://10.0.0.7:6379/0",
                "redis://user@redis.example",
                "redis://:s3cr3t@redis.example.com",
                "redis://:s3cr3t@10.0.0.9",
                "redis://:s3cr3t@[2001:db8::1]:6379",
                "rediss://redis.example",
            )
        )
    },
    "second-broker-in-the-clear": (
        {"broker_url": "redis://redis;redis://:s3cr3t@redis.example"},
        "LETHE_BROKER_URL",
    ),
    **{
        f"broker-of-another-kind-{number}": ({"broker_url": url}, "LETHE_BROKER_URL")
        for number, url in enumerate(
            (
                "amqp://guest:guest@rabbit",
                "sentinel://:s3cr3t@sentinel",
                "sqs://",
                "redis://redis;amqp://guest:guest@rabbit",
                "redis",
            )
        )
    },
    "exposed-beside-a-database-that-no-worker-hears-of": (
        {**PRODUCTION, "broker_url": "memory://"},
        "LETHE_BROKER_URL",
    ),
    **{
        f"open-database-{number}": ({**PRODUCTION, "database_url": url}, "LETHE_DATABASE_URL")
        for number, url in enumerate(
            (
                "postgresql://u:s3cr3t@db.example.com/lethe",
                "postgresql://u:s3cr3t@db.example.com/lethe?sslmode=disable",
                "postgresql://u:s3cr3t@10.0.0.9/lethe?sslmode=prefer",
                "postgresql://u:s3cr3t@10.0.0.9/lethe?sslmode=require&sslmode=disable",
                "postgresql+psycopg://u@db.example.com/lethe?sslmode=require",
                "postgresql://u:s3/cr3t@db.example.com/lethe",
                "postgresql://u:s3cr3t@/lethe?host=127.0.0.1:5432&host=10.0.0.9:5432",
                "postgresql://u:s3cr3t@db/lethe?hostaddr=10.0.0.9",
                "db.example.com",
            )
        )
    },
    **{
        f"{name}-in-the-clear-{number}": ({name: url}, f"LETHE_{name.upper()}")
        for name in ("otlp_endpoint", "hf_mirror", "blobs_endpoint")
        for number, url in enumerate(("http://store.example:9000", "http://10.0.0.7"))
    },
    "counts-by-an-asynchronous-client": ({"limits_url": "async+memory://"}, "limits_url"),
}
ACCEPTED: dict[str, dict[str, Any]] = {
    "default": {},
    "production": PRODUCTION,
    "production-behind-a-proxy": {**PRODUCTION, "trusted_proxies": ["10.0.0.0/8"]},
    "production-with-roles": {**PRODUCTION, "database_tenant_role": "lethe_tenant"},
    "roles-by-driver": {
        **PRODUCTION,
        "database_url": "postgresql+psycopg://db/lethe",
        "database_tenant_role": "lethe_tenant",
    },
    "exposed-embedded": EXPOSED,
    "local-with-everything-open": {
        "docs": True,
        "calls_per_minute_per_key": 0,
        "calls_per_minute_per_tenant": 0,
    },
    "connection": {"connections": [CONNECTION]},
    "connection-beside-blobs": {
        "connections": [{**CONNECTION, "access_key": "a", "secret_key_file": "f"}],
        "blobs_url": "s3://blobs",
    },
    **{
        f"connection-to-a-namesake-{name}": {
            "connections": [{**CONNECTION, "endpoint": theirs}],
            "blobs_url": "s3://research",
            "blobs_endpoint": ours,
        }
        for name, ours, theirs in (
            ("elsewhere", "", "https://store.example"),
            ("by-port", "https://store.example:9000", "https://store.example:9001"),
        )
    },
    "counts-in-redis": {"limits_url": "redis://redis:6379/1"},
    "local-with-a-failpoint": {"failpoint": "a=kill"},
    **{
        f"blobs-at-{number}": {**BUCKET, "blobs_endpoint": endpoint}
        for number, endpoint in enumerate(
            (
                "",
                "https://store.example",
                "http://127.0.0.1:9000",
                "http://[::1]:9",
                "http://s3:7070",
            )
        )
    },
    **{
        f"{name}-at-{number}": {**PRODUCTION, name: url}
        for name in ("broker_url", "limits_url")
        for number, url in enumerate(
            (
                "rediss://:s3cr3t@redis.example:6379/0",
                "rediss://redis.example?ssl_certfile=/run/client.pem",
                "redis://127.0.0.1:6379/0",
                "redis://[::1]:6379/0",
                "redis://localhost",
                "redis://:s3cr3t@redis:6379/0",
            )
        )
    },
    "broker-at-a-socket": {**PRODUCTION, "broker_url": "redis+socket:///run/redis.sock"},
    **{
        f"database-at-{number}": {**PRODUCTION, "database_url": url}
        for number, url in enumerate(
            (
                "postgresql+psycopg://u:s3cr3t@postgres:5432/lethe",
                "postgresql://u@127.0.0.1/lethe",
                "postgresql://u@[::1]/lethe",
                "postgresql://u@/lethe?host=/run/postgresql.d",
                "postgresql://u:s3cr3t@db.example.com/lethe?sslmode=require",
                "postgresql://u@10.0.0.9/lethe?sslmode=verify-full&sslcert=/run/client.pem",
            )
        )
    },
    **{
        f"{name}-at-{number}": {name: url}
        for name in ("otlp_endpoint", "hf_mirror")
        for number, url in enumerate(
            ("https://store.example", "http://127.0.0.1:4318", "http://collector:4318")
        )
    },
    "mirror-in-a-folder": {"hf_mirror": "/srv/mirror.d"},
}


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"LETHE_{name.upper()}", raising=False)


@pytest.mark.parametrize("row", REFUSED)
def test_refused(row: str) -> None:
    values, named = REFUSED[row]
    with pytest.raises(ValidationError, match=named) as refused:
        Settings(**values)
    assert PEPPER not in str(refused.value)
    assert "cr3t" not in str(refused.value)


@pytest.mark.parametrize("row", ACCEPTED)
def test_accepted(row: str) -> None:
    Settings(**ACCEPTED[row])


def test_an_empty_variable_is_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.setenv(f"LETHE_{name.upper()}", "")
    settings = Settings()
    assert settings.model_fields_set == set()
    assert settings.broker_url == "memory://"


@pytest.mark.parametrize(
    ("host", "is_local"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("example.org", False),
        ("", False),
    ],
)
def test_docs_are_shown_on_this_machine_alone(host: str, is_local: bool) -> None:
    assert Settings(host=host).shows_docs is is_local
    assert Settings(host=host, docs=False).shows_docs is False


def test_what_is_shown_of_settings_holds_no_password() -> None:
    redis, https = "rediss://:s3cr3t@redis.example", "https://u:s3cr3t@store.example"
    settings = Settings(
        database_url="postgresql://u:s3cr3t@db/lethe",
        broker_url=redis,
        limits_url=redis,
        hf_mirror=https,
        otlp_endpoint=https,
        pepper=SecretStr("s3cr3t" * 6),
        metrics_token=SecretStr("s3cr3t" * 6),
        blobs_url="s3://lethe",
        blobs_access_key="a",
        blobs_secret_key=SecretStr("s3cr3t"),
        connections=(
            Connection(name="one", tenants=("*",), access_key="a", secret_key=SecretStr("s3cr3t")),
        ),
    )
    assert "s3cr3t" not in f"{settings!r} {settings}"
