"""What is shipped is well formed: Compose and Kubernetes by schema, the image by a few rules.

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
import kubernetes_validate
import pytest
import yaml

from app.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
OURS = ("migrate", "api", "worker", "worker-gpu")
DEPENDENCIES = ("postgres", "redis", "s3")
MANIFESTS = sorted((ROOT / "docs/deploy/kubernetes").glob("*.yaml"))
SECRETS = {"POSTGRES_PASSWORD": "p" * 32, "REDIS_PASSWORD": "r" * 32, "LETHE_PEPPER": "x" * 32}

PASSED_ON = {"LETHE_TRUSTED_PROXIES": '["10.0.0.0/8"]', "LETHE_METRICS_TOKEN": "m" * 32}


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


@pytest.mark.parametrize("name", OURS)
def test_the_environment_makes_valid_settings(
    name: str, services: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {
        variable: PASSED_ON[variable] if value is None else filled(value)
        for variable, value in services[name]["environment"].items()
    }
    known = {f"LETHE_{field.upper()}" for field in Settings.model_fields}
    assert set(environment) <= known
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    settings = Settings()
    assert settings.database.startswith("postgresql+psycopg://lethe:pppp")
    assert settings.broker_url.startswith("redis://:rrrr")
    assert (name == "api") == bool(settings.trusted_proxies) == bool(settings.metrics_token)


def filled(value: str) -> str:
    """The value with the required variables filled in; a variable with no message is a mistake."""
    filled_in = re.sub(r"\$\{(\w+):\?[^}]+\}", lambda match: SECRETS[match[1]], value)
    filled_in = re.sub(r"\$\{LETHE_BLOBS_\w+:-\}", "", filled_in)
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


def objects() -> list[dict[str, Any]]:
    return [each for file in MANIFESTS for each in yaml.safe_load_all(file.read_text())]


def pods() -> dict[str, dict[str, Any]]:
    """Pod specifications by the name of what makes them."""
    found = {}
    for each in objects():
        spec = each.get("spec", {})
        template = spec.get("jobTemplate", {}).get("spec", spec).get("template")
        if template is not None:
            found[each["metadata"]["name"]] = template["spec"]
    return found


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: file.name)
def test_manifests_keep_the_schemas_of_kubernetes(file: Path) -> None:
    for each in yaml.safe_load_all(file.read_text()):
        kubernetes_validate.validate(each, "1.37", strict=True)
        assert each["kind"] == "Namespace" or each["metadata"]["namespace"] == "lethe"


def test_the_schemas_refuse_a_misspelt_field() -> None:
    deployment = next(each for each in objects() if each["kind"] == "Deployment")
    deployment["spec"]["replica"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, "1.37", strict=True)


def test_every_pod_is_restricted_and_writes_to_volumes_alone() -> None:
    assert set(pods()) == {"lethe-api", "lethe-worker", "lethe-migrate", "lethe-tombstones"}
    for name, pod in pods().items():
        assert pod["automountServiceAccountToken"] is False, name
        security = pod["securityContext"]
        assert (security["runAsNonRoot"], security["runAsUser"]) == (True, 10001), name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, name
        assert container["resources"]["limits"]["memory"], name
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]} >= {"data", "tmp"}, name


def test_the_pods_of_the_api_share_their_uploads() -> None:
    (data,) = [each for each in pods()["lethe-api"]["volumes"] if each["name"] == "data"]
    claims = {x["metadata"]["name"]: x["spec"] for x in objects() if x["kind"].endswith("Claim")}
    claim = claims[data["persistentVolumeClaim"]["claimName"]]
    assert claim["accessModes"] == ["ReadWriteMany"]


def test_pods_that_serve_or_work_are_watched() -> None:
    (api,), (worker,) = pods()["lethe-api"]["containers"], pods()["lethe-worker"]["containers"]
    assert api["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert api["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert worker["livenessProbe"]["exec"]["command"] == ["python", "-m", "worker.alive"]
    assert worker["command"] == ["celery", "-A", "worker.main", "worker", "--loglevel", "INFO"]
    service = next(each for each in objects() if each["kind"] == "Service")
    deployment = next(each for each in objects() if each["kind"] == "Deployment")
    assert deployment["metadata"]["name"] == "lethe-api"
    assert service["spec"]["selector"] == deployment["spec"]["template"]["metadata"]["labels"]


def test_the_settings_of_the_pods_are_known_and_hold_no_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (config,) = [each for each in objects() if each["kind"] == "ConfigMap"]
    assert all(each["kind"] != "Secret" for each in objects())
    fields = {f"LETHE_{field.upper()}": field for field in Settings.model_fields}
    assert config["data"].keys() <= fields.keys()
    for name, value in config["data"].items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.blobs_url.startswith("s3://")
    (data,) = [each for each in pods()["lethe-worker"]["volumes"] if each["name"] == "data"]
    assert data["emptyDir"] == {"sizeLimit": "20Gi"}
    assert settings.max_scratch_bytes < 0.75 * 20 * 2**30, "a pod that fills it is evicted"
    assert "trusted_proxies" in settings.model_fields_set


def test_pods_reach_what_they_need_and_are_reached_by_calls_alone() -> None:
    policies = [each["spec"] for each in objects() if each["kind"] == "NetworkPolicy"]
    everything = [spec for spec in policies if spec["podSelector"] == {}]
    assert sorted(kind for spec in everything for kind in spec["policyTypes"]) == [
        "Egress",
        "Ingress",
    ]
    (egress,) = [spec["egress"] for spec in everything if "egress" in spec]
    assert [port["port"] for port in egress[0]["ports"]] == [53, 53, 5432, 6379, 443]
    assert not any("ingress" in spec for spec in everything)


def test_the_lifecycle_removes_what_the_service_cannot_see() -> None:
    rules = json.loads((ROOT / "docs/deploy/s3/lifecycle.json").read_text())["Rules"]
    assert all(rule["Status"] == "Enabled" for rule in rules)
    assert {key for rule in rules for key in rule} >= {
        "AbortIncompleteMultipartUpload",
        "NoncurrentVersionExpiration",
    }
