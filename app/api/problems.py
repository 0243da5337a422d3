"""Every refusal as an RFC 9457 problem document; the only exception handlers of the house."""

from __future__ import annotations

import errno
import http
from collections.abc import Iterable
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.exc import (
    IntegrityError,
    InterfaceError,
    InternalError,
    NotSupportedError,
    OperationalError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.routing import Match

from .. import correlation
from ..store import session
from ..store.errors import (
    BadRequest,
    Conflict,
    NotFound,
    ServiceError,
    TooLarge,
    Unacceptable,
    Unavailable,
)
from .validation import parameter_refusal

MEDIA_TYPE = "application/problem+json"
RETRYABLE = frozenset({429, 503, 507})
STANDBY = (InternalError, NotSupportedError)
"""What PostgreSQL says to a write, or to the beginning of one, where it may only be read."""
log = structlog.get_logger("lethe.api")


class FieldError(BaseModel):
    """One wrong place in a body or one wrong parameter."""

    pointer: str = Field(description="JSON pointer into the body, or `query:NAME`.")
    message: str
    code: str


class Problem(BaseModel):
    """An RFC 9457 problem document. Programs read `code`; people read `detail`."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(description="`urn:lethe:problem:` and the code with hyphens.")
    title: str
    status: int
    detail: str
    instance: str = Field(description="Path of the call.")
    code: str = Field(description="Stable snake_case code.")
    request_id: str = Field(description="Also in the header `X-Request-Id`.")
    trace_id: str = Field(description="W3C trace id; empty where the call could not be read.")
    errors: list[FieldError] = []
    retryable: bool = Field(description="Whether the same call may succeed later.")


class InsufficientStorage(ServiceError):
    """The disk is full."""

    status = 507
    default_code = "insufficient_storage"


class RangeNotSatisfiable(ServiceError):
    """Not one satisfiable range."""

    status = 416
    default_code = "range_not_satisfiable"


class MethodNotAllowed(ServiceError):
    """The path exists, the method does not."""

    status = 405
    default_code = "method_not_allowed"


class Internal(ServiceError):
    """A bug of ours; logged, never described to the caller."""

    status = 500
    default_code = "internal"


def document(error: ServiceError, *, instance: str, request_id: str) -> dict[str, Any]:
    """Return the problem document of ``error``."""
    headers = {name.lower() for name in error.headers}
    return {
        "type": f"urn:lethe:problem:{error.code.replace('_', '-')}",
        "title": error.code.replace("_", " ").capitalize(),
        "status": error.status,
        "detail": _detail(error),
        "instance": instance,
        "code": error.code,
        "request_id": request_id,
        "trace_id": correlation.trace_id(),
        "errors": error.errors,
        "retryable": error.status in RETRYABLE or "retry-after" in headers,
        **error.extra,
    }


def response(http_request: Request, error: ServiceError) -> Response:
    """Render ``error`` for ``http_request``."""
    body = document(
        error,
        instance=http_request.scope["path"],
        request_id=http_request.scope.get("lethe.request_id", ""),
    )
    return JSONResponse(
        body, status_code=error.status, headers=error.headers, media_type=MEDIA_TYPE
    )


def problems(*errors: type[ServiceError]) -> dict[int | str, dict[str, Any]]:
    """Document ``errors`` as ``responses=`` of a route, one entry per status."""
    found: dict[int | str, dict[str, Any]] = {"default": _documented(["Any other problem."])}
    by_status: dict[int, list[str]] = {}
    for error in errors:
        by_status.setdefault(error.status, []).append((error.__doc__ or "").partition("\n")[0])
    found.update({status: _documented(lines) for status, lines in by_status.items()})
    return found


def _documented(lines: Iterable[str]) -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/Problem"}
    return {"description": " ".join(lines), "content": {MEDIA_TYPE: {"schema": schema}}}


def install(api: FastAPI) -> None:
    """Make ``api`` answer every exception with a problem document."""
    api.add_exception_handler(ServiceError, _service_error)
    api.add_exception_handler(RequestValidationError, _validation_error)
    api.add_exception_handler(HTTPException, _http_exception)
    for away in (OperationalError, InterfaceError, *STANDBY, PoolTimeout):
        api.add_exception_handler(away, _database_error)
    api.add_exception_handler(IntegrityError, _integrity_error)
    api.add_exception_handler(ClientDisconnect, _client_gone)
    api.add_exception_handler(OSError, _os_error)


async def _service_error(http_request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    return response(http_request, error)


async def _validation_error(http_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return response(http_request, parameter_refusal(error.errors()))


async def _http_exception(http_request: Request, error: Exception) -> Response:
    """Render what the framework itself raises: 404, 405, 413 and unreadable bodies."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allow = ", ".join(sorted(_allowed(http_request)))
        return response(http_request, MethodNotAllowed(headers={"Allow": allow}))
    known: dict[int, ServiceError] = {404: NotFound(), 413: TooLarge(), 422: Unacceptable()}
    if error.status_code in known:
        return response(http_request, known[error.status_code])
    if error.status_code < 500:
        return response(http_request, BadRequest())
    return response(http_request, Internal())


async def _database_error(http_request: Request, error: Exception) -> Response:
    """Say no word on what was changed: what got lost may be the answer of a commit."""
    log.error("database_error", error=type(error).__name__)
    if session.is_full(error):
        full = Unavailable(detail="The database's disk is full.", headers={"Retry-After": "60"})
        return response(http_request, full)
    detail = "The database does not answer, or takes no changes now."
    return response(http_request, Unavailable(detail=detail, headers={"Retry-After": "5"}))


async def _integrity_error(http_request: Request, error: Exception) -> Response:
    log.error("integrity_error", error=type(error).__name__)
    detail = "Another call changed the same thing at the same moment; try again."
    return response(http_request, Conflict(detail=detail, headers={"Retry-After": "1"}))


async def _client_gone(http_request: Request, _: Exception) -> Response:
    return response(http_request, BadRequest("client_disconnected", "The body ended early."))


async def _os_error(http_request: Request, error: Exception) -> Response:
    """Name a full disk; every other operating system error is a bug or an outage."""
    assert isinstance(error, OSError)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return response(http_request, InsufficientStorage(detail="The storage is full."))
    raise error


def _allowed(http_request: Request) -> set[str]:
    """Methods of the routes that match; where one names the whole path, of no other."""
    found: dict[int, set[str]] = {}
    scope = {**http_request.scope, "path_params": {}}
    for context in iter_route_contexts(http_request.app.routes):
        match, inside = context.original_route.matches(scope)
        if match is not Match.NONE:
            methods = found.setdefault(len(inside.get("path_params", {})), set())
            methods |= getattr(context.original_route, "methods", None) or set()
    return found[min(found)]


def _detail(error: ServiceError) -> str:
    if error.code == NotFound.default_code:
        # The same words for what is unknown, malformed and another tenant's.
        return "There is no such thing, or it is not yours."
    return error.detail or http.HTTPStatus(error.status).phrase + "."
