"""What happens to every call before and after its route: ids, limits, headers, last resort."""

from __future__ import annotations

import re

import structlog
from fastapi import Request
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from ulid import ULID

from .. import correlation, logs
from ..store.errors import BadRequest, NotFound, ServiceError
from ..store.session import settings
from . import problems

MAX_TARGET_BYTES = 16 * 1024
MAX_HEADER_BYTES = 64 * 1024
REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
DOCUMENTATION = frozenset({"/docs", "/docs/oauth2-redirect", "/openapi.json"})
READING = frozenset({"/unlearners/recommend"})
"""Routes of POST that store nothing: they answer a question about the data, like a GET."""
log = structlog.get_logger("lethe.api")
access = structlog.get_logger("lethe.access")


class TargetTooLong(ServiceError):
    """The path and query are too long."""

    status = 414
    default_code = "uri_too_long"


class HeadersTooLarge(ServiceError):
    """The header fields are too large."""

    status = 431
    default_code = "request_header_fields_too_large"


class Door:
    """Outermost ASGI layer of the service."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one call; whatever escapes the routes becomes a problem document."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope["lethe.request_id"] = request_id = _request_id(scope)
        correlation.note(request_id=request_id)
        # Filled by whoever serves the call, which may see a copy of the scope.
        scope["lethe.headers"], scope["lethe.caller"] = {}, []
        started = False

        async def stamped(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                _stamp(headers, request_id, scope["lethe.headers"])
                _note_reading(scope, message["status"])
            await send(message)

        try:
            refused = _ambiguous(scope) or _too_large(scope) or _hidden(scope)
            if refused is not None:
                await problems.response(Request(scope), refused)(scope, receive, stamped)
                return
            await self.app(scope, receive, stamped)
        except Exception as error:
            # The last resort: nothing above this layer knows problem documents.
            _log(error, scope)
            if started:
                raise
            answer = problems.response(Request(scope), problems.Internal())
            await answer(scope, receive, stamped)


def _log(error: Exception, scope: Scope) -> None:
    """Log where a bug is; its message and the values around it may hold personal data."""
    log.error(
        "unhandled_error",
        error=type(error).__name__,
        request_id=scope["lethe.request_id"],
        method=scope["method"],
        stack=logs.places(error.__traceback__),
    )


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and REQUEST_ID.fullmatch(value.decode("latin-1")):
            return str(value.decode("latin-1"))
    return f"rid_{ULID()}"


def _stamp(headers: MutableHeaders, request_id: str, noted: dict[str, str]) -> None:
    headers["X-Request-Id"] = request_id
    headers["X-Content-Type-Options"] = "nosniff"
    headers["X-Frame-Options"] = "DENY"
    headers["Referrer-Policy"] = "no-referrer"
    headers["Cross-Origin-Resource-Policy"] = "same-origin"
    if not headers.get("content-type", "").startswith("text/html"):
        headers.setdefault("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
    headers.setdefault("Cache-Control", "no-store")
    for name, value in noted.items():
        headers.setdefault(name, value)


def _note_reading(scope: Scope, status: int) -> None:
    """Log who read what; paths hold ids, never anything personal."""
    is_reading = scope["method"] in ("GET", "HEAD") or scope["path"] in READING
    if scope["lethe.caller"] and is_reading and status < 400:
        caller = scope["lethe.caller"][0]
        access.info(
            "read",
            tenant=caller.tenant_id,
            key=caller.key_id,
            method=scope["method"],
            path=scope["path"],
            status=status,
            request_id=scope["lethe.request_id"],
        )


def _hidden(scope: Scope) -> ServiceError | None:
    if scope["path"] in DOCUMENTATION and not settings().shows_docs:
        return NotFound()
    return None


def _ambiguous(scope: Scope) -> ServiceError | None:
    """Refuse a body with two lengths: a proxy before us may have read the other one."""
    names = {name for name, _ in scope["headers"]}
    if {b"content-length", b"transfer-encoding"} <= names:
        detail = "Give either Content-Length or Transfer-Encoding."
        return BadRequest(detail=detail, headers={"Connection": "close"})
    return None


def _too_large(scope: Scope) -> ServiceError | None:
    target = len(scope.get("raw_path") or scope["path"].encode()) + len(scope["query_string"])
    if target > MAX_TARGET_BYTES:
        return TargetTooLong(detail=f"Path and query are limited to {MAX_TARGET_BYTES} bytes.")
    if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADER_BYTES:
        return HeadersTooLarge(detail=f"Headers are limited to {MAX_HEADER_BYTES} bytes.")
    return None
