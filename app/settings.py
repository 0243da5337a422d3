"""One frozen Settings, read once; the only reader of the environment."""

from __future__ import annotations

import json
import secrets
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from typing import Literal

from pydantic import Field, IPvAnyNetwork, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from .connections import (
    BLOBS_URL,
    Connection,
    endpoint_of,
    is_broker,
    is_endpoint,
    is_in_the_clear,
    is_open,
    is_open_database,
    server_of,
)

Need = Literal["cpu", "gpu"]


class Settings(BaseSettings):
    """Everything a machine may decide; ``LETHE_`` + the upper-case name sets it, unless empty."""

    model_config = SettingsConfigDict(
        env_prefix="LETHE_",
        env_ignore_empty=True,  # `LETHE_X=` in an .env file unsets
        frozen=True,
        extra="ignore",
        hide_input_in_errors=True,
    )

    data_dir: Path = Field(Path(".lethe"), description="Folder of blobs, scratch and secrets.")
    database_url: str = Field(
        "",
        repr=False,  # like every address that may hold a password
        description="SQLAlchemy URL; empty means SQLite in the data folder. A PostgreSQL on "
        "another machine needs sslmode=require or better, and a password or a certificate.",
    )
    blobs_url: str = Field(
        "",
        description="Where blobs are kept: s3://bucket or s3://bucket/prefix; empty means a folder "
        "in the data folder.",
    )
    blobs_endpoint: str = Field(
        "",
        description="Address of an S3-compatible store, https://..., or http://... on this "
        "machine; empty means that of AWS.",
    )
    blobs_region: str = Field("us-east-1", min_length=1, description="Region of the bucket.")
    blobs_access_key: str = Field(
        "",
        description="Access key of the bucket; without one the machine's own role is used, and the "
        "variables of AWS.",
    )
    blobs_secret_key: SecretStr | None = Field(
        None, description="Secret that belongs to the access key."
    )
    orphan_seconds: float = Field(
        86400.0, ge=60, description="Age at which bytes that no row names are removed."
    )
    database_tenant_role: str = Field(
        "",
        description="PostgreSQL role that transactions on behalf of a caller take; row-level "
        "security then hides what is not its tenant's. Empty: the filters of the code alone.",
    )
    broker_url: str = Field(
        "memory://",
        repr=False,
        description="Celery broker: memory://, redis://... or rediss://... (on another machine, "
        "with a password or a certificate).",
    )
    host: str = Field("127.0.0.1", description="Address the API listens on.")
    port: int = Field(8000, ge=0, le=65535, description="Port the API listens on.")
    pepper: SecretStr | None = Field(
        None,
        description="Secret for API keys, subject ids and cursors, at least 32 characters. On "
        "SQLite a new database gets one, kept in the data folder (mode 0600).",
    )
    docs: bool | None = Field(
        None,
        description="Whether /docs and /openapi.json are there; unset: only where the API listens "
        "on this machine alone.",
    )
    trusted_proxies: tuple[IPvAnyNetwork, ...] = Field(
        (), description="Networks whose X-Forwarded-For is believed."
    )
    limits_url: str = Field(
        "memory://",
        repr=False,
        pattern="^(memory|rediss?)://",
        description="Where calls are counted: memory://, redis://... or rediss://... (on another "
        "machine, with a password or a certificate).",
    )
    failed_keys_per_minute: int = Field(
        300, ge=1, description="Calls without a usable key that one address may make."
    )
    calls_per_minute_per_key: int = Field(
        60_000, ge=0, description="Calls that one key may make; 0: any number."
    )
    calls_per_minute_per_tenant: int = Field(
        120_000, ge=0, description="Calls that all keys of a tenant may make; 0: any number."
    )
    subject_lookups_per_minute: int = Field(
        600,
        ge=0,
        description="Requests and recommendations for a subject that one key may send; 0: any.",
    )
    max_uploads_in_flight: int = Field(
        32, ge=1, description="Uploads of one tenant that one process takes at once."
    )
    max_queued_jobs: int = Field(
        20_000, ge=1, description="Queued jobs of one tenant before no more are taken in."
    )
    max_open_requests: int = Field(
        100_000,
        ge=1,
        description="Requests of one tenant that wait or are worked on before no more are taken "
        "in.",
    )
    max_gpu_minutes_per_day: int = Field(
        0,
        ge=0,
        description="Minutes within 24 hours that jobs of one tenant may compute before audits, "
        "oracles and banks are refused; 0: any number. Unlearning counts and is never refused.",
    )
    max_model_bytes: int = Field(2 * 2**30, description="Largest model file accepted.")
    max_dataset_bytes: int = Field(2 * 2**30, description="Largest dataset file accepted.")
    max_bytes_in_flight: int = Field(
        16 * 2**30, ge=0, description="Most bytes of a tenant's uploads that are not used yet."
    )
    max_open_uploads: int = Field(
        1_000, ge=1, description="Most uploads of a tenant that are not used yet."
    )
    max_tenant_bytes: int = Field(
        2**40,
        ge=0,
        description="Bytes of all stored datasets and versions of one tenant together; 0: any "
        "number. What unlearning makes counts and is never refused.",
    )
    upload_idle_seconds: float = Field(
        86_400.0, gt=0, description="An upload that nobody touched for so long is removed."
    )
    upload_slow_seconds: float = Field(
        60.0, gt=0, description="A body that brings under 1 KiB/s for so long is given up."
    )
    import_root: Path | None = Field(
        None,
        description="Folder of imports; a tenant's file:// sources lie below the folder of its id "
        "in it. Unset: none are taken.",
    )
    hf_mirror: str = Field(
        "",
        repr=False,
        description="Folder or base URL, https://... on another machine, that hf:// sources are "
        "read from; empty: none are.",
    )
    connections: tuple[Connection, ...] = Field(
        (),
        description="Buckets that s3:// sources are read from, a JSON list; the members are in "
        "`docs/deployment.md`.",
    )
    max_parameters: int = Field(2_000_000_000, description="Largest network accepted.")
    max_tenant_parameters: int = Field(
        20_000_000_000,
        ge=0,
        description="Parameters of all models of one tenant together; 0: any number.",
    )
    max_records: int = Field(5_000_000, description="Most records in one dataset.")
    lease_seconds: float = Field(60.0, gt=0, description="How long a claim holds unrenewed.")
    heartbeat_seconds: float = Field(10.0, gt=0, description="How often a lease is renewed.")
    sweep_seconds: float = Field(5.0, gt=0, description="How often the sweeper looks.")
    dispatch_seconds: float = Field(2.0, gt=0, description="How often the dispatcher looks.")
    redispatch_seconds: float = Field(
        60.0, gt=0, description="A queued job rung this long ago is rung again."
    )
    stall_seconds: float = Field(
        900.0, gt=0, description="A runner that reports nothing for so long is killed."
    )
    max_job_seconds: float = Field(
        7 * 86_400.0, gt=0, description="Wall-clock limit of jobs that name none themselves."
    )
    overtime_seconds: float = Field(
        300.0, gt=0, description="A runner so far past the limit of its job is killed."
    )
    checkpoint_seconds: float = Field(
        600.0, gt=0, description="How often a long training keeps its state."
    )
    max_runner_bytes: int = Field(
        0,
        ge=0,
        description="Memory of a runner before it is ended; 0 takes nine tenths of the machine's.",
    )
    max_scratch_bytes: int = Field(
        0,
        ge=0,
        description="Bytes that a runner may have written at once before it is ended; 0 takes "
        "4 GiB and 16 times the files of its job.",
    )
    sandbox_minimum: Literal["L0", "L1", "L2"] = Field(
        "L0", description="Workers whose runners are walled in less refuse to start."
    )
    max_runner_deaths: int = Field(3, ge=1, description="Runner deaths before a job fails.")
    max_lost_leases: int = Field(20, ge=1, description="Lost leases before a job fails.")
    retry_backoff_seconds: tuple[float, ...] = Field(
        (30.0, 120.0, 600.0), description="Waits after the first, second, third runner death."
    )
    max_approximate_versions: int = Field(
        20, ge=1, description="Approximate versions in a row before retraining comes first."
    )
    max_approximate_share: float = Field(
        0.25,
        gt=0,
        description="Share of the training records forgotten approximately before that.",
    )
    max_relative_change: float = Field(
        2.0, gt=0, description="Sum of relative parameter changes before that."
    )
    max_utility_loss: float = Field(
        0.03, gt=0, description="Sum of accuracy losses, as a share, before that."
    )
    worker_needs: tuple[Need, ...] = Field(
        ("cpu", "gpu"),
        min_length=1,
        description="Work that a worker takes: cpu (reading uploads), gpu (all that computes).",
    )
    torch_threads: int = Field(0, ge=0, description="Threads of a runner; 0 leaves torch's choice.")
    train_processes: int = Field(
        1,
        ge=0,
        le=64,
        description="Processes of this machine that share each training; 0: one for each "
        "accelerator. Their threads together are those of a runner.",
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")
    spare_runner: bool = Field(True, description="Keep one runner started ahead, without data.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info",
        description="Least level that is logged: debug, info, warning or error. Who read what is "
        "logged whatever it is.",
    )
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="json, console, or auto: console where a terminal is attached."
    )
    metrics_token: SecretStr | None = Field(
        None,
        min_length=32,
        description="Bearer token, at least 32 characters, that may read /metrics and nothing "
        "else, even while the database is away.",
    )
    otlp_endpoint: str = Field(
        "",
        repr=False,
        pattern=r"^(https?://\S+)?$",
        description="OpenTelemetry collector for traces, http://host:4318 or, on another machine, "
        "https://...; empty exports none.",
    )
    failpoint: str = Field(
        "",
        pattern=r"^([a-z_.]+=(kill|stop|full|away)(@[1-9][0-9]*)?)?$",
        description="For tests: where this process is to die, freeze or fail "
        "(`app/store/failpoints.py`).",
    )

    @model_validator(mode="after")
    def _refuse_insecure(self) -> Settings:
        if self.pepper is not None and len(self.pepper.get_secret_value()) < 32:
            raise ValueError("LETHE_PEPPER must have at least 32 characters")
        if self.pepper is None and not self.embedded_database:
            raise ValueError("LETHE_PEPPER is required when LETHE_DATABASE_URL is set")
        if self.lease_seconds <= 2 * self.heartbeat_seconds:
            raise ValueError("LETHE_LEASE_SECONDS must be over twice LETHE_HEARTBEAT_SECONDS")
        if self.database_tenant_role and not self.database.startswith("postgres"):
            raise ValueError("LETHE_DATABASE_TENANT_ROLE needs a PostgreSQL LETHE_DATABASE_URL")
        if not is_broker(self.broker_url):
            raise ValueError("LETHE_BROKER_URL must be redis://, rediss:// or memory://")
        self._refuse_open_roads()
        self._refuse_odd_blobs()
        self._refuse_odd_connections()
        if not self.is_local:
            self._refuse_exposed()
        return self

    def _refuse_open_roads(self) -> None:
        """Refuse what crosses to another machine readable, or where nobody is asked who comes."""
        for name in ("broker_url", "limits_url", "blobs_endpoint", "hf_mirror", "otlp_endpoint"):
            if is_in_the_clear(getattr(self, name)):
                kind = "rediss" if name in ("broker_url", "limits_url") else "https"
                raise ValueError(f"LETHE_{name.upper()} must be {kind}://... on another machine")
        for name, url in (("BROKER", self.broker_url), ("LIMITS", self.limits_url)):
            if is_open(url):
                raise ValueError(f"LETHE_{name}_URL needs a password for a Redis elsewhere")
        try:
            is_open_one = is_open_database(self.database)
        except ValueError:
            raise ValueError("LETHE_DATABASE_URL is no URL of a database") from None
        if is_open_one:
            raise ValueError(
                "LETHE_DATABASE_URL needs sslmode=require or better, and a password or a "
                "certificate, for a PostgreSQL elsewhere"
            )

    def _refuse_odd_blobs(self) -> None:
        if self.blobs_url and not BLOBS_URL.fullmatch(self.blobs_url):
            raise ValueError("LETHE_BLOBS_URL must be s3://bucket or s3://bucket/prefix")
        if self.blobs_endpoint and not is_endpoint(self.blobs_endpoint):
            raise ValueError("LETHE_BLOBS_ENDPOINT must be http(s)://host[:port] and no more")
        if bool(self.blobs_access_key) != bool(self.blobs_secret_key):
            raise ValueError("LETHE_BLOBS_ACCESS_KEY and LETHE_BLOBS_SECRET_KEY go together")
        if not self.blobs_url and (self.blobs_endpoint or self.blobs_access_key):
            raise ValueError("LETHE_BLOBS_URL is missing, but what belongs to it is set")

    def _refuse_odd_connections(self) -> None:
        names = [each.name for each in self.connections]
        if len(set(names)) < len(names):
            raise ValueError("LETHE_CONNECTIONS has two connections of one name")
        server = server_of(endpoint_of(self.blobs_endpoint, self.blobs_region))
        own = (server, self.blobs_url.removeprefix("s3://").partition("/")[0])
        if any((server_of(each.address), each.bucket_name) == own for each in self.connections):
            raise ValueError("LETHE_CONNECTIONS may not reach the bucket of LETHE_BLOBS_URL")

    def _refuse_exposed(self) -> None:
        """Refuse what would do on this machine alone."""
        if self.pepper is not None and len(set(self.pepper.get_secret_value())) < 8:
            raise ValueError("LETHE_PEPPER is no secret: it has fewer than 8 different characters")
        if self.failpoint:
            raise ValueError("LETHE_FAILPOINT is for tests, where LETHE_HOST is local")
        if self.docs:
            raise ValueError("LETHE_DOCS shows the API to whoever reaches LETHE_HOST; unset it")
        if not (self.calls_per_minute_per_key and self.calls_per_minute_per_tenant):
            raise ValueError("LETHE_CALLS_PER_MINUTE_... may be 0 only where LETHE_HOST is local")
        if any(not network.prefixlen for network in self.trusted_proxies):
            raise ValueError("LETHE_TRUSTED_PROXIES may not name every address")
        if self.database.startswith("postgres") and self.broker_url.startswith("memory"):
            raise ValueError("LETHE_BROKER_URL must be a Redis: memory:// rings for no worker")

    @property
    def is_local(self) -> bool:
        """Whether the API listens on this machine alone."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def shows_docs(self) -> bool:
        """Whether the API describes itself."""
        return self.is_local if self.docs is None else self.docs

    @property
    def embedded_database(self) -> bool:
        """Whether the database is the SQLite file in the data folder."""
        return not self.database_url

    @property
    def database(self) -> str:
        """SQLAlchemy URL in force."""
        return self.database_url or f"sqlite+pysqlite:///{(self.data_dir / 'lethe.db').resolve()}"

    @property
    def has_pepper(self) -> bool:
        """Whether there is a pepper already; otherwise the first use makes one."""
        return self.pepper is not None or (self.data_dir / "pepper").exists()

    def pepper_bytes(self) -> bytes:
        """The pepper; made once and kept with mode 0600 on the embedded database."""
        if self.pepper is not None:
            return self.pepper.get_secret_value().encode()
        path = self.data_dir / "pepper"
        self.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists():
            write_private(path, secrets.token_urlsafe(48))
        return path.read_text().encode()


def write_private(path: Path, text: str) -> bool:
    """Write a secret that only this user can read, whole or not at all; False if it is there."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    draft.touch(mode=0o600, exist_ok=False)
    try:
        draft.write_text(text)
        path.hardlink_to(draft)
    except FileExistsError:
        return False
    finally:
        draft.unlink()
    return True


_ACCELERATOR = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "LD_LIBRARY_PATH")


def accelerator_environment() -> dict[str, str]:
    """What a launcher said about the accelerator; all of the environment that a runner inherits."""
    import os  # beside the settings, the only reader of the environment

    environment = os.environ  # noqa: TID251  # this is the file that may
    return {name: environment[name] for name in _ACCELERATOR if name in environment}


def child_environment(settings: Settings) -> dict[str, str]:
    """Environment for a service started as a child: this process's own, with these settings."""
    import os  # beside the settings, the only reader of the environment

    secret = {"pepper", "blobs_secret_key", "connections", "metrics_token"}
    explicit = settings.model_dump(mode="json", include=settings.model_fields_set, exclude=secret)
    values = {
        f"LETHE_{name.upper()}": value if isinstance(value, str) else json.dumps(value)
        for name, value in explicit.items()
    }
    return {**os.environ, **values}  # noqa: TID251  # this is the file that may


@cache
def get_settings() -> Settings:
    """Return the settings of this process."""
    return Settings()
