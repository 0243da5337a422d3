"""What is shipped is well formed: Compose by schema, the image by a few rules.

Nothing is built or started here; that needs a container engine.
"""

from __future__ import annotations

import json
import re
import shlex
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from app.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
OURS = ("migrate", "api", "worker", "worker-gpu")
DEPENDENCIES = ("postgres", "redis", "s3")
EGRESS = ROOT / "docs/deploy/compose/egress.yml"
SECRETS = {
    "POSTGRES_PASSWORD": "p" * 32,
    "POSTGRES_OWNER_PASSWORD": "o" * 32,
    "POSTGRES_API_PASSWORD": "a" * 32,
    "POSTGRES_WORKER_PASSWORD": "w" * 32,
    "REDIS_PASSWORD": "r" * 32,
    "LETHE_PEPPER": "x" * 32,
}
LOGINS = {
    "migrate": "lethe_owner:oooo",
    "api": "lethe_api:aaaa",
    "worker": "lethe_worker:wwww",
    "worker-gpu": "lethe_worker:wwww",
}
FOR_THE_API = {
    "LETHE_TRUSTED_PROXIES": '["10.0.0.0/8"]',
    "LETHE_METRICS_TOKEN": "m" * 32,
    "LETHE_CONNECTIONS": '[{"name": "research", "tenants": ["*"]}]',
    "LETHE_IMPORT_ROOT": "/imports",
    "LETHE_HF_MIRROR": "https://mirror.example",
}
NOT_PASSED_ON = {
    "LETHE_DATA_DIR": "the image says where the volume is",
    "LETHE_HOST": "the image listens on all addresses of its container",
    "LETHE_PORT": "the port that is published is LETHE_PUBLISHED_PORT",
    "LETHE_DOCS": "refused where the API listens beyond its machine",
    "LETHE_FAILPOINT": "for tests",
}
"""Settings that make no sense in a container -> why."""


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, Any]:
    return compose["services"]


@pytest.fixture(scope="module")
def stages() -> list[list[tuple[str, str]]]:
    """Instructions of the Dockerfile by stage, continuation lines joined."""
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    pairs = [(word.upper(), rest.strip()) for word, _, rest in (x.partition(" ") for x in lines)]
    starts = [index for index, (word, _) in enumerate(pairs) if word == "FROM"]
    return [pairs[a:b] for a, b in zip(starts, [*starts[1:], len(pairs)], strict=True)]


def schema_errors(document: dict[str, Any]) -> list[str]:
    vendored = resources.files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json"
    schema = json.loads(vendored.read_text())
    validator = jsonschema.validators.validator_for(schema)
    return [error.message for error in validator(schema).iter_errors(document)]


def test_compose_keeps_its_schema(compose: dict[str, Any]) -> None:
    assert schema_errors(compose) == []


def test_the_schema_refuses_an_unknown_key(compose: dict[str, Any]) -> None:
    assert schema_errors({**compose, "servces": {}}) != []


def test_every_service_is_hardened(services: dict[str, Any]) -> None:
    assert set(services) == {*OURS, *DEPENDENCIES}
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "/tmp" in service["tmpfs"], name
        assert not service.get("privileged"), name
        assert service["pids_limit"] <= 4096, name
    assert all(services[name]["mem_limit"] for name in ("api", "worker", "worker-gpu"))


def test_only_the_api_is_reachable_and_only_from_this_machine(compose: dict[str, Any]) -> None:
    published = {name: s["ports"] for name, s in compose["services"].items() if s.get("ports")}
    assert list(published) == ["api"]
    assert all(port.startswith("127.0.0.1:") for port in published["api"])
    assert compose["networks"]["inside"]["internal"] is True
    outside = [n for n, s in compose["services"].items() if "outside" in s["networks"]]
    assert outside == ["api"]


def test_what_runs_on_is_watched(services: dict[str, Any]) -> None:
    for name in (*DEPENDENCIES, "worker", "worker-gpu"):
        assert services[name]["healthcheck"]["test"], name
    assert "healthcheck" not in services["api"], "the image has the one of the API"


def test_nothing_starts_before_what_it_needs(services: dict[str, Any]) -> None:
    for name in ("api", "worker", "worker-gpu"):
        conditions = {k: v["condition"] for k, v in services[name]["depends_on"].items()}
        assert conditions == {
            "migrate": "service_completed_successfully",
            "postgres": "service_healthy",
            "redis": "service_healthy",
        }
    assert services["migrate"]["depends_on"]["postgres"]["condition"] == "service_healthy"
    assert services["migrate"]["restart"] == "no"


def test_the_broker_evicts_nothing_and_writes_everything_down(services: dict[str, Any]) -> None:
    command = " ".join(services["redis"]["command"])
    assert "--maxmemory-policy noeviction" in command
    assert "--appendonly yes" in command
    assert "--requirepass" in command


def test_the_gpu_worker_is_asked_for(services: dict[str, Any]) -> None:
    gpu = services["worker-gpu"]
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert gpu["profiles"] == ["gpu"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    assert "deploy" not in services["worker"]


@pytest.mark.parametrize(
    ("passed_on", "worker", "gpu"),
    [
        ({}, ("cpu", "gpu"), ("gpu",)),
        ({"LETHE_WORKER_NEEDS": '["cpu"]'}, ("cpu",), ("gpu",)),
        ({"LETHE_GPU_WORKER_NEEDS": '["cpu", "gpu"]'}, ("cpu", "gpu"), ("cpu", "gpu")),
    ],
)
def test_workers_with_and_without_a_gpu_have_needs_of_their_own(
    passed_on: dict[str, str],
    worker: tuple[str, ...],
    gpu: tuple[str, ...],
    services: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, needs in (("worker", worker), ("worker-gpu", gpu)):
        with monkeypatch.context() as patched:
            settings = settings_with(environment_of(services[name], passed_on), patched)
        assert settings.worker_needs == needs, name


def environment_of(service: dict[str, Any], passed_on: dict[str, str]) -> dict[str, str]:
    """What a container gets where ``passed_on`` stands in ``.env``."""
    variables = service["environment"].items()
    given = {
        name: passed_on.get(name) if value is None else filled(value, passed_on)
        for name, value in variables
    }
    return {name: value for name, value in given.items() if value is not None}


def settings_with(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Settings:
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    return Settings()


@pytest.mark.parametrize("name", OURS)
def test_the_environment_makes_valid_settings(
    name: str, services: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = environment_of(services[name], FOR_THE_API)
    settings = settings_with(environment, monkeypatch)
    assert settings.database.startswith(f"postgresql+psycopg://{LOGINS[name]}")
    assert settings.broker_url.startswith("redis://:rrrr")
    assert settings.limits_url.startswith("redis://:rrrr")
    assert settings.database_tenant_role == ("lethe_tenant" if name == "api" else "")
    assert (FOR_THE_API.keys() <= environment.keys()) == (name == "api")
    assert FOR_THE_API.keys().isdisjoint(environment) == (name != "api")


@pytest.mark.parametrize("name", OURS)
def test_an_empty_variable_is_as_good_as_none(
    name: str, services: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = services[name]["environment"].items()
    unset = settings_with(environment_of(services[name], {}), monkeypatch)
    emptied = {variable: "" for variable, value in values if value is None}
    assert settings_with(emptied, monkeypatch) == unset


def test_compose_passes_every_setting_on(services: dict[str, Any]) -> None:
    known = {f"LETHE_{field.upper()}" for field in Settings.model_fields}
    api, worker = (services[name]["environment"].keys() for name in ("api", "worker"))
    assert api | NOT_PASSED_ON.keys() == known
    assert api.isdisjoint(NOT_PASSED_ON)
    assert api - worker == {*FOR_THE_API, "LETHE_DATABASE_TENANT_ROLE"}
    assert worker <= api


def test_the_superuser_is_nobodys_login(services: dict[str, Any]) -> None:
    postgres = services["postgres"]
    assert "POSTGRES_USER" not in postgres["environment"]
    assert all("POSTGRES_PASSWORD" not in str(services[name]) for name in OURS)
    # The scripts run before the server listens on an address.
    assert postgres["healthcheck"]["test"][:4] == ["CMD", "pg_isready", "-h", "127.0.0.1"]


def test_workers_are_let_out_by_a_file_of_its_own(compose: dict[str, Any]) -> None:
    egress = yaml.safe_load(EGRESS.read_text())
    assert schema_errors({**egress, "networks": compose["networks"]}) == []
    assert set(egress["services"]) == {"worker", "worker-gpu"}
    for service in egress["services"].values():
        assert set(service) == {"networks", "environment"}
        assert set(service["networks"]) == {"inside", "outside"}
        # Runners share the network of their worker.
        assert service["environment"] == {"LETHE_SANDBOX_MINIMUM": "${LETHE_SANDBOX_MINIMUM:-L1}"}


def filled(value: str, passed_on: dict[str, str]) -> str:
    """The value with its variables filled in; one with neither message nor default is a mistake."""
    filled_in = re.sub(r"\$\{(\w+):\?[^}]+\}", lambda match: SECRETS[match[1]], value)
    default = r"\$\{(\w+):-([^}]+)\}"
    filled_in = re.sub(default, lambda match: passed_on.get(match[1]) or match[2], filled_in)
    assert "$" not in filled_in, f"not required, or not known: {value}"
    return filled_in


def test_no_secret_is_written_down() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    for name in SECRETS:
        assert f"${{{name}:?" in text
        assert not re.search(rf"\$\{{{name}(:?-|\}})", text), "has a default, or may be empty"


def test_the_last_user_is_not_root(stages: list[list[tuple[str, str]]]) -> None:
    users = [rest for word, rest in stages[-1] if word == "USER"]
    assert users[-1:] == ["10001:10001"]


def test_the_image_watches_its_health_and_keeps_its_commands_in_exec_form(
    stages: list[list[tuple[str, str]]],
) -> None:
    last = dict(stages[-1])
    assert "/healthz" in last["HEALTHCHECK"]
    command = json.loads(last["CMD"])
    assert command == ["python", "-m", "app.main"]
    assert json.loads(last["HEALTHCHECK"].partition("CMD ")[2])[0] == "python"


def test_the_last_stage_compiles_and_downloads_nothing(
    stages: list[list[tuple[str, str]]],
) -> None:
    assert len(stages) == 2
    words = {
        word
        for instruction, rest in stages[-1]
        if instruction == "RUN"
        for word in shlex.split(rest)
    }
    assert words.isdisjoint({"apt-get", "apt", "pip", "uv", "curl", "wget", "gcc", "make"})
    installs = [rest for word, rest in stages[0] if word == "RUN" and "install" in rest]
    assert installs
    assert all("--require-hashes" in rest for rest in installs)


def test_nothing_is_added_from_elsewhere(stages: list[list[tuple[str, str]]]) -> None:
    instructions = [pair for stage in stages for pair in stage]
    assert "ADD" not in {word for word, _ in instructions}
    assert not any("://" in rest for word, rest in instructions if word in ("COPY", "RUN"))
    assert not any(rest.endswith(":latest") for word, rest in instructions if word == "FROM")


def test_every_copied_file_exists_and_reaches_the_builder(
    stages: list[list[tuple[str, str]]],
) -> None:
    allowed = [
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    ]
    sources = [
        source
        for stage in stages
        for word, rest in stage
        if word == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    ]
    assert {"app", "core", "worker", "migrations"} <= set(sources)
    assert sorted(sources) == sorted(allowed)
    assert [source for source in sources if not (ROOT / source).exists()] == []


def test_the_bucket_is_asked_for(services: dict[str, Any], compose: dict[str, Any]) -> None:
    assert services["s3"]["profiles"] == ["s3"]
    assert not services["s3"].get("ports")
    (volume,) = services["s3"]["volumes"]
    assert volume == "s3:/data/lethe"
    assert "s3" in compose["volumes"]


def test_the_lifecycle_removes_what_the_service_cannot_see() -> None:
    rules = json.loads((ROOT / "docs/deploy/s3/lifecycle.json").read_text())["Rules"]
    assert all(rule["Status"] == "Enabled" for rule in rules)
    assert {key for rule in rules for key in rule} >= {
        "AbortIncompleteMultipartUpload",
        "NoncurrentVersionExpiration",
    }
