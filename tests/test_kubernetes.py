"""The Kubernetes manifests are well formed: by schema, and by a few rules. None is applied here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from app.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
WORKERS = ("lethe-worker", "lethe-worker-gpu")
OF_THEIR_OWN = {
    "lethe-api": {"LETHE_DATABASE_TENANT_ROLE", "LETHE_LIMITS_URL"},
    "lethe-worker": {"LETHE_WORKER_NEEDS"},
    "lethe-worker-gpu": {"LETHE_WORKER_NEEDS", "LETHE_DEVICE"},
}
"""Variables that stand in the manifest of a pod itself."""
MANIFESTS = sorted((ROOT / "docs/deploy/kubernetes").glob("*.yaml"))


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
    assert set(pods()) == {*WORKERS, "lethe-api", "lethe-migrate", "lethe-tombstones"}
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


def test_each_pod_has_a_login_of_its_own_and_the_api_a_role() -> None:
    found = {}
    for name, pod in pods().items():
        (container,) = pod["containers"]
        assert container["envFrom"][0] == {"configMapRef": {"name": "lethe"}}
        found[name] = [each["secretRef"]["name"] for each in container["envFrom"][1:]]
        given = {each["name"]: each for each in container.get("env", [])}
        assert given.keys() == OF_THEIR_OWN.get(name, set())
    assert found == {
        "lethe-migrate": ["lethe", "lethe-migrate"],
        "lethe-api": ["lethe", "lethe-api"],
        "lethe-worker": ["lethe", "lethe-worker"],
        "lethe-worker-gpu": ["lethe", "lethe-worker"],
        "lethe-tombstones": ["lethe", "lethe-worker"],
    }
    text = (ROOT / "docs/deployment.md").read_text()
    for secret in {name for names in found.values() for name in names}:
        assert re.search(rf"create secret generic {secret} ", text), secret


def test_pods_of_the_api_count_together() -> None:
    (container,) = pods()["lethe-api"]["containers"]
    role, limits = container["env"]
    assert role == {"name": "LETHE_DATABASE_TENANT_ROLE", "value": "lethe_tenant"}
    # A pod whose Secret lacks the key does not start.
    assert limits["valueFrom"] == {"secretKeyRef": {"name": "lethe", "key": "LETHE_LIMITS_URL"}}


def test_pods_that_serve_or_work_are_watched() -> None:
    (api,) = pods()["lethe-api"]["containers"]
    assert api["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert api["readinessProbe"]["httpGet"]["path"] == "/readyz"
    for name in WORKERS:
        (worker,) = pods()[name]["containers"]
        assert worker["livenessProbe"]["exec"]["command"] == ["python", "-m", "worker.alive"]
        assert worker["command"] == ["celery", "-A", "worker.main", "worker", "--loglevel", "INFO"]
    service = next(each for each in objects() if each["kind"] == "Service")
    deployment = next(each for each in objects() if each["kind"] == "Deployment")
    assert deployment["metadata"]["name"] == "lethe-api"
    assert service["spec"]["selector"] == deployment["spec"]["template"]["metadata"]["labels"]


def test_workers_share_the_work_by_what_they_have(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for name in WORKERS:
        (worker,) = pods()[name]["containers"]
        with monkeypatch.context() as patched:
            for variable in worker["env"]:
                patched.setenv(variable["name"], variable["value"])
            settings = Settings()
        num_gpus = worker["resources"]["limits"].get("nvidia.com/gpu", 0)
        found[name] = (settings.worker_needs, settings.device, num_gpus)
    assert found == {
        "lethe-worker": (("cpu",), "auto", 0),
        "lethe-worker-gpu": (("gpu",), "cuda", 1),
    }


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
    assert settings.sandbox_minimum == "L1"
    for worker in WORKERS:
        (data,) = [each for each in pods()[worker]["volumes"] if each["name"] == "data"]
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
    assert [port["port"] for port in egress[0]["ports"]] == [53, 53, 5432, 6379, 443, 4318]
    assert not any("ingress" in spec for spec in everything)
