"""The OpenAPI document: bodies that are read by our own readers, and one shape of problem."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

COMPONENTS = "#/components/schemas/{model}"
PROBLEM = {"$ref": "#/components/schemas/Problem"}
REQUIRED_HEADERS = {("/unlearn-requests", "post"): "Idempotency-Key"}
"""Headers whose absence has a code of its own, so that FastAPI takes them for optional."""


def accepts(shape: str, examples: dict[str, Any], *, required: bool = True) -> dict[str, Any]:
    """Document a JSON body read by ``strict_json``.

    Args:
        shape: name of the shape, which must be among the ``bodies`` of ``document``.
        examples: request bodies by name.
        required: whether the body may be left out.
    """
    content = {
        "schema": {"$ref": COMPONENTS.format(model=shape)},
        "examples": {name: {"value": value} for name, value in examples.items()},
    }
    return {"requestBody": {"required": required, "content": {"application/json": content}}}


def uploads_of(
    shape: str,
    header: str,
    examples: dict[str, Any],
    optional: Mapping[str, str] | None = None,
    *,
    sourced: dict[str, Any],
) -> dict[str, Any]:
    """Document an upload: multipart, raw bytes with metadata in ``header``, or JSON alone.

    Args:
        shape: of the metadata.
        header: carries the metadata of raw bytes.
        examples: metadata by name.
        optional: further files of a multipart body -> what they are.
        sourced: metadata by name that says where the file lies.
    """
    reference = {"$ref": COMPONENTS.format(model=shape)}
    files = {
        name: {"type": "string", "format": "binary", "description": description}
        for name, description in (optional or {}).items()
    }
    multipart = {
        "schema": {
            "type": "object",
            "required": ["file", "metadata"],
            "properties": {
                "file": {"type": "string", "format": "binary"},
                "metadata": reference,
                **files,
            },
        },
        "encoding": {"metadata": {"contentType": "application/json"}},
        "examples": {
            name: {"value": {"file": "(bytes)", "metadata": value}}
            for name, value in examples.items()
        },
    }
    alone = {
        "schema": reference,
        "examples": {name: {"value": value} for name, value in sourced.items()},
    }
    raw = {"schema": {"type": "string", "format": "binary"}}
    parameters = [
        _header(header, "Metadata as base64 of JSON; required with a raw body."),
        _header("Repr-Digest", "`sha-256=:<base64>:` of the file; checked if given (RFC 9530)."),
    ]
    return {
        "parameters": parameters,
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": multipart,
                "application/octet-stream": raw,
                "application/json": alone,
            },
        },
    }


def _header(name: str, description: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": "header",
        "required": False,
        "description": description,
        "schema": {"type": "string"},
    }


def document(
    api: FastAPI,
    bodies: Sequence[type[BaseModel]],
    variants: Mapping[tuple[str, str], Sequence[type[BaseModel]]],
    problem: type[BaseModel],
) -> Any:
    """Return the OpenAPI document of ``api``.

    Args:
        api: the application.
        bodies: shapes of bodies that FastAPI does not see.
        variants: shape and field -> configurations that the field takes, from a registry.
        problem: shape of every error.
    """
    found = get_openapi(
        title=api.title,
        version=api.version,
        summary=api.summary,
        description=api.description,
        routes=api.routes,
        tags=api.openapi_tags,
    )
    schemas = found.setdefault("components", {}).setdefault("schemas", {})
    configs = [config for offered in variants.values() for config in offered]
    schemas.update(_definitions([*bodies, *configs], "validation"))
    schemas.update(_definitions([problem], "serialization"))
    for (shape, field), offered in variants.items():
        names = dict.fromkeys(config.__name__ for config in offered)
        _offer(schemas[shape]["properties"][field], [*names])
    for config in configs:
        # Its default is for code; a body chooses a variant by it.
        required = schemas[config.__name__].setdefault("required", [])
        if "name" not in required:
            required.append("name")
    for (path, method), header in REQUIRED_HEADERS.items():
        for parameter in found["paths"][path][method]["parameters"]:
            if parameter["name"] == header:
                parameter["required"] = True
                told = {k: v for k, v in parameter["schema"].items() if k not in ("anyOf", "title")}
                parameter["schema"] = {"type": "string", **told}
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for operations in found["paths"].values():
        for response in operations.get("head", {}).get("responses", {}).values():
            response.pop("content", None)
    _tell_objects(schemas)
    return found


def _tell_objects(schemas: Mapping[str, dict[str, Any]]) -> None:
    """Tell defaults that are objects in words: generators of clients give up on such fields."""
    for schema in schemas.values():
        for field in schema.get("properties", {}).values():
            if isinstance(field.get("default"), dict):
                told = f"Default: `{json.dumps(field.pop('default'))}`."
                field["description"] = f"{field.get('description', '')} {told}".lstrip()


def _definitions(
    shapes: Sequence[type[BaseModel]], mode: Literal["validation", "serialization"]
) -> dict[str, Any]:
    _, found = models_json_schema([(shape, mode) for shape in shapes], ref_template=COMPONENTS)
    definitions: dict[str, Any] = found["$defs"]
    return definitions


def _offer(field: dict[str, Any], names: Sequence[str]) -> None:
    """Put the schemas called ``names`` in the place of the untyped object of ``field``.

    Of a list, they are what its items may be.
    """
    lists = [option for option in field.get("anyOf", []) if option.get("type") == "array"]
    field = lists[0]["items"] if lists else field
    kept = [option for option in field.pop("anyOf", []) if option.get("type") != "object"]
    for untyped in ("type", "required", "properties", "additionalProperties"):
        field.pop(untyped, None)
    field["anyOf"] = [*kept, *({"$ref": COMPONENTS.format(model=name)} for name in names)]
