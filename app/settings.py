"""One frozen Settings, read once; the only reader of the environment."""

from __future__ import annotations

import secrets
from functools import cache
from pathlib import Path

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Everything a machine may decide; ``LETHE_`` + the upper-case name sets it."""

    model_config = SettingsConfigDict(env_prefix="LETHE_", frozen=True, extra="ignore")

    data_dir: Path = Field(Path(".lethe"), description="Folder of blobs, scratch and secrets.")
    database_url: str = Field(
        "", description="SQLAlchemy URL; empty means SQLite in the data folder."
    )
    broker_url: str = Field("memory://", description="Celery broker: redis://... or memory://.")
    host: str = Field("127.0.0.1", description="Address the API listens on.")
    port: int = Field(8000, ge=0, le=65535, description="Port the API listens on.")
    pepper: SecretStr | None = Field(
        None,
        description="Secret for API keys, subject ids and cursors, at least 32 characters. On "
        "SQLite a missing one is made and kept in the data folder (mode 0600).",
    )
    pepper_version: int = Field(1, ge=1, description="Version stored beside every keyed hash.")
    max_model_bytes: int = Field(2 * 2**30, description="Largest model file accepted.")
    max_dataset_bytes: int = Field(2 * 2**30, description="Largest dataset file accepted.")
    max_bytes_in_flight: int = Field(
        16 * 2**30, ge=0, description="Most bytes of a tenant's uploads that are not used yet."
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
        "", description="Folder or base URL that hf:// sources are read from; empty: none are."
    )
    max_parameters: int = Field(2_000_000_000, description="Largest network accepted.")
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
    torch_threads: int = Field(0, ge=0, description="Threads of a runner; 0 leaves torch's choice.")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")
    spare_runner: bool = Field(True, description="Keep one runner started ahead, without data.")

    @model_validator(mode="after")
    def _refuse_insecure(self) -> Settings:
        if self.pepper is not None and len(self.pepper.get_secret_value()) < 32:
            raise ValueError("LETHE_PEPPER must have at least 32 characters")
        if self.pepper is None and not self.embedded_database:
            raise ValueError("LETHE_PEPPER is required when LETHE_DATABASE_URL is set")
        if self.lease_seconds <= 2 * self.heartbeat_seconds:
            raise ValueError("LETHE_LEASE_SECONDS must be over twice LETHE_HEARTBEAT_SECONDS")
        return self

    @property
    def embedded_database(self) -> bool:
        """Whether the database is the SQLite file in the data folder."""
        return not self.database_url

    @property
    def database(self) -> str:
        """SQLAlchemy URL in force."""
        return self.database_url or f"sqlite+pysqlite:///{(self.data_dir / 'lethe.db').resolve()}"

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

    explicit = settings.model_dump(include=settings.model_fields_set, exclude={"pepper"})
    values = {f"LETHE_{name.upper()}": str(value) for name, value in explicit.items()}
    return {**os.environ, **values}  # noqa: TID251  # this is the file that may


@cache
def get_settings() -> Settings:
    """Return the settings of this process."""
    return Settings()
