"""The OpenAPI document: complete, and its examples work."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from safetensors.numpy import save

from app.api.examples import DATASET_ID, MODEL_ID, REQUEST_ID, UPLOAD_ID
from app.store import tables
from app.store.session import transaction
from core.audits import audits
from core.networks import networks
from core.pruners import pruners
from core.unlearners import unlearners

from . import files
from .test_access_matrix import DOCUMENT, OPERATIONS
from .world import Tenant

EXAMPLES = [
    (name, media_type, title)
    for name, (_, _, operation) in OPERATIONS.items()
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items()
    for title in content.get("examples", {})
]
PIECES = {"append_to_upload"}
"""Its body is bytes, as ``test_resumable`` sends them."""


def test_every_body_has_an_example() -> None:
    with_body = {name for name, (_, _, o) in OPERATIONS.items() if "requestBody" in o}
    assert {name for name, _, _ in EXAMPLES} == with_body - PIECES
    assert with_body - PIECES == {
        "create_model",
        "create_dataset",
        "create_unlearn_request",
        "recommend_unlearners",
        "create_api_key",
        "rotate_api_key",
        "create_audit",
        "train_oracle",
        "train_reference_bank",
        "complete_upload",
    }


@pytest.mark.parametrize(("name", "media_type", "title"), EXAMPLES)
def test_example_works(tenant: Tenant, name: str, media_type: str, title: str) -> None:
    method, path, operation = OPERATIONS[name]
    content = operation["requestBody"]["content"][media_type]
    text = json.dumps(content["examples"][title]["value"])
    if "{model_id}" in path:
        model_id, request_id = forgotten(tenant)
        path = path.format(model_id=model_id, version="@serving")
        text = text.replace(REQUEST_ID, request_id)
    elif "{key_id}" in path:
        path = path.format(key_id=tenant.get("/me").json()["key"]["id"])
    elif DATASET_ID in text or MODEL_ID in text:
        dataset_id, model_id = prepared(tenant, needs_model=MODEL_ID in text)
        text = text.replace(DATASET_ID, dataset_id).replace(MODEL_ID, model_id)
    file = files.parquet() if name == "create_dataset" else checkpoint()
    if UPLOAD_ID in text:
        text = text.replace(UPLOAD_ID, tenant.finished_upload(file))
    if "{upload_id}" in path:
        path = path.format(upload_id=tenant.finished_upload(file))
    value = json.loads(text)
    if media_type == "multipart/form-data":
        answer = tenant.upload(path, file, value["metadata"])
    else:
        validate(value, content["schema"])
        headers = {"Idempotency-Key": "k"}
        answer = tenant.call(method, path, json=value, headers=headers)
    assert answer.is_success, answer.text
    (schema,) = [
        response["content"]["application/json"]["schema"]
        for status, response in operation["responses"].items()
        if status == str(answer.status_code)
    ]
    validate(answer.json(), schema)


def prepared(tenant: Tenant, *, needs_model: bool) -> tuple[str, str]:
    """Make what the examples speak of: a dataset with ids, a subject and a class of that name."""
    names = ["zero", "seven"]
    dataset_id = tenant.ready_dataset(class_names=names)
    with_names(tenant, dataset_id)
    if not needs_model:
        return dataset_id, ""
    return dataset_id, tenant.ready_model(dataset_id=dataset_id)


def forgotten(tenant: Tenant) -> tuple[str, str]:
    """Make a model whose version in force has forgotten something; and the id of the request."""
    model_id = tenant.ready_model()
    request = tenant.forget(model_id).json()
    tenant.publish(request["job_id"])
    return model_id, request["id"]


def with_names(tenant: Tenant, dataset_id: str) -> None:
    with transaction() as session:
        for row, record_id in ((0, "digit-0001"), (1, "digit-0002")):
            record = session.get_one(tables.Record, (tenant.id, dataset_id, row))
            record.record_id = record_id


def checkpoint() -> bytes:
    return save(
        {
            "1.weight": np.zeros((10, 64), dtype=np.float32),
            "1.bias": np.zeros(10, dtype=np.float32),
        }
    )


def validate(value: Any, schema: dict[str, Any]) -> None:
    whole = {**schema, "components": DOCUMENT["components"]}
    Draft202012Validator(whole).validate(value)


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_is_described(name: str) -> None:
    operation = OPERATIONS[name][2]
    assert operation["summary"]
    assert operation["description"]
    assert operation["tags"]
    assert "422" not in operation["responses"] or problem_of(operation, "422")
    for parameter in operation.get("parameters", []):
        assert parameter.get("description"), (name, parameter["name"])
        assert parameter["name"] != "if-none-match" or "304" in operation["responses"]
    if OPERATIONS[name][0] == "HEAD":
        assert not [answer for answer in operation["responses"].values() if "content" in answer]
    elif name not in ("get_health", "get_readiness"):
        assert problem_of(operation, "default")


def problem_of(operation: dict[str, Any], status: str) -> bool:
    content = operation["responses"][status]["content"]
    return content == {
        "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}
    }


def test_variants_are_offered_by_schema() -> None:
    """A registered unlearner or network is in the document without any further code."""
    schemas = DOCUMENT["components"]["schemas"]
    for shape, field, registry in (
        ("UnlearnRequestCreate", "unlearner", unlearners),
        ("ModelCreate", "architecture", networks),
        ("AuditCreate", "audits", audits),
    ):
        offered = json.dumps(schemas[shape]["properties"][field])
        for entry in registry:
            assert f'/{entry.config.__name__}"' in offered
    auto = schemas["UnlearnRequestCreate"]["properties"]["unlearner"]["anyOf"][0]
    assert auto["const"] == "auto"


def test_generators_of_clients_can_read_every_shape() -> None:
    """They give up on a field whose default is an object, and on an object with alternatives."""
    for name, schema in DOCUMENT["components"]["schemas"].items():
        assert not {"properties", "anyOf"} <= set(schema), name
        for field, told in schema.get("properties", {}).items():
            assert not isinstance(told.get("default"), dict), (name, field)
    schedule = DOCUMENT["components"]["schemas"]["Recipe"]["properties"]["schedule"]
    assert schedule["description"].endswith('Default: `{"name": "constant"}`.')


def test_what_a_name_chooses_requires_the_name() -> None:
    variants = [s for s in DOCUMENT["components"]["schemas"].values() if "const" in named(s)]
    assert len(variants) > 60
    for schema in variants:
        assert "name" in schema["required"], schema["title"]


def named(schema: dict[str, Any]) -> dict[str, Any]:
    """What a schema says of its field ``name``."""
    return dict(schema.get("properties", {}).get("name", {}))


def test_references_resolve() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    text = json.dumps(DOCUMENT)
    found = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert found <= set(schemas)
    assert "HTTPValidationError" not in schemas
    for name, schema in schemas.items():
        Draft202012Validator.check_schema(schema)
        assert schema.get("title") or name


def test_routes_of_the_service() -> None:
    assert {f"{method} {path}" for method, path, _ in OPERATIONS.values()} == {
        "DELETE /api-keys/{key_id}",
        "DELETE /datasets/{dataset_id}",
        "DELETE /models/{model_id}",
        "DELETE /unlearn-requests/{request_id}",
        "DELETE /uploads/{upload_id}",
        "GET /api-keys",
        "GET /api-keys/{key_id}",
        "GET /audits",
        "GET /datasets",
        "GET /datasets/{dataset_id}",
        "GET /healthz",
        "GET /jobs",
        "GET /me",
        "GET /jobs/{job_id}",
        "GET /jobs/{job_id}/checkpoint",
        "GET /metrics",
        "GET /models",
        "GET /models/{model_id}",
        "GET /models/{model_id}/versions",
        "GET /models/{model_id}/versions/{version}",
        "GET /models/{model_id}/versions/{version}/audits",
        "GET /models/{model_id}/versions/{version}/checkpoint",
        "GET /networks",
        "GET /pruners",
        "GET /readyz",
        "GET /unlearn-requests",
        "GET /unlearn-requests/{request_id}",
        "GET /unlearners",
        "GET /unlearners/{name}",
        "GET /uploads/{upload_id}",
        "GET /version",
        "HEAD /models/{model_id}/versions/{version}/checkpoint",
        "HEAD /uploads/{upload_id}",
        "OPTIONS /uploads",
        "PATCH /uploads/{upload_id}",
        "POST /api-keys",
        "POST /api-keys/{key_id}/rotate",
        "POST /datasets",
        "POST /jobs/{job_id}/cancel",
        "POST /jobs/{job_id}/retry",
        "POST /models",
        "POST /models/{model_id}/reference-bank",
        "POST /models/{model_id}/versions/{version}/audits",
        "POST /models/{model_id}/versions/{version}/oracle",
        "POST /unlearn-requests",
        "POST /unlearners/recommend",
        "POST /uploads",
        "POST /uploads/{upload_id}/complete",
    }


EXTRAS = ("timm/", "transformers/")
"""Networks that are there where their package is installed."""


def test_catalogue_is_the_registry(tenant: Tenant) -> None:
    for path, registry in (
        ("/unlearners", unlearners),
        ("/pruners", pruners),
        ("/audits", audits),
        ("/networks", networks),
    ):
        found = tenant.get(path).json()["data"]
        items = [each for each in found if not each["name"].startswith(EXTRAS)]
        assert [item["name"] for item in items] == registry.names()
        for item in items:
            Draft202012Validator.check_schema(item["schema"])
            assert item["summary"]
            assert item["source"]
    one = tenant.get("/unlearners/ssd").json()
    assert one in tenant.get("/unlearners").json()["data"]
    assert one["exact"] is False
    assert one["networks"] == []
    assert tenant.get("/unlearners/sisa").json()["networks"] == ["ensemble"]
    composed = tenant.get("/unlearners/prune_first").json()
    assert composed["needs"] == ["retain", "recipe"], "of omp and fine_tune"
    assert tenant.get("/unlearners/magic").status_code == 404


def test_catalogue_says_what_to_rely_on(tenant: Tenant) -> None:
    for path, told in (
        ("/unlearners", ("cost", "promise")),
        ("/pruners", ("cost", "promise")),
        ("/audits", ("reference",)),
    ):
        for item in tenant.get(path).json()["data"]:
            assert all(item[word].endswith(".") for word in told), item["name"]
    found = {item["name"]: item for item in tenant.get("/audits").json()["data"]}
    assert (found["membership"]["routine"], found["membership"]["needs"]) == (True, ["holdout"])
    assert (found["zrf"]["routine"], found["zrf"]["needs"]) == (False, ["holdout", "before"])
    found = {item["name"]: item for item in tenant.get("/pruners").json()["data"]}
    assert (found["omp"]["keeps_parent"], found["omp"]["needs"]) == (False, ["retain", "recipe"])
    assert (found["zeros"]["keeps_parent"], found["zeros"]["needs"]) == (True, [])
