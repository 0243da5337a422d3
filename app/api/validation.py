"""Pydantic's errors as refusals with a stable code and JSON pointers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..store.errors import BadRequest, NotFound, ServiceError, Unacceptable

MOST_ERRORS = 20
UNKNOWN_NAMES = {"/unlearner": "algorithm_unknown", "/architecture": "architecture_unknown"}
CODES = {
    "extra_forbidden": "unknown_field",
    "finite_number": "invalid_number",
    "int_parsing_size": "invalid_number",
}


def refusal(
    errors: Sequence[Mapping[str, Any]], document: Any = None, at: str = ""
) -> ServiceError:
    """Return the refusal that stands for these pydantic errors.

    Args:
        errors: as from ``ValidationError.errors()``; the inputs in them are never repeated.
        document: the JSON value that was validated, to tell its keys from names of variants.
        at: pointer of that value within the body.
    """
    fields = [_field(error, document, at) for error in errors[:MOST_ERRORS]]
    codes = {field["code"] for field in fields}
    code = codes.pop() if len(codes) == 1 else "validation_failed"
    return Unacceptable(code, summary(fields), errors=fields)


def parameter_refusal(errors: Sequence[Mapping[str, Any]]) -> ServiceError:
    """Return the refusal of wrong path, query or header parameters.

    A malformed id in a path is answered like an unknown one.
    """
    if any(error["loc"][0] == "path" for error in errors):
        return NotFound()
    fields = [
        {
            "pointer": ":".join(str(step) for step in error["loc"][:2]),
            "message": str(error["msg"]),
            "code": "invalid_parameter",
        }
        for error in errors[:MOST_ERRORS]
    ]
    return BadRequest("invalid_parameter", summary(fields), errors=fields)


def summary(fields: Sequence[Mapping[str, str]]) -> str:
    """Return one line about the first wrong places."""
    return "; ".join(f"{field['pointer'] or 'body'}: {field['message']}" for field in fields[:3])


def _field(error: Mapping[str, Any], document: Any, at: str) -> dict[str, str]:
    pointer = at + _pointer(error["loc"], document, missing=error["type"] == "missing")
    code = CODES.get(error["type"], "validation_failed")
    if error["type"] in ("union_tag_invalid", "union_tag_not_found") and pointer in UNKNOWN_NAMES:
        code = UNKNOWN_NAMES[pointer]
    return {"pointer": pointer, "message": error["msg"], "code": code}


def _pointer(place: Sequence[object], document: Any, *, missing: bool) -> str:
    """Return the JSON pointer of a pydantic location, which also names variants of unions."""
    steps: list[str] = []
    for number, step in enumerate(place):
        last = number == len(place) - 1
        if isinstance(document, dict) and step in document:
            document = document[str(step)]
        elif isinstance(document, list) and isinstance(step, int):
            document = document[step] if step < len(document) else None
        elif not (last and missing):
            continue
        steps.append(str(step).replace("~", "~0").replace("/", "~1"))
    return "".join(f"/{step}" for step in steps)
