"""The outermost layer: every call leaves one line in the log and its figures in the metrics."""

from __future__ import annotations

import re
import time
from typing import Any

import structlog
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .. import correlation
from . import metrics

ID = re.compile(r"[a-z]{3}_[0-9A-Z]{26}")
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
QUIET = frozenset({"/healthz", "/readyz", "/metrics"})
"""Routes that machines ask every few seconds: logged only when they fail."""

log = structlog.get_logger("lethe.api")


class Watch:
    """Times and counts calls by route template; neither path nor query is ever kept."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one call, and note how it went."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        correlation.fresh()
        status, held, started = 500, False, time.perf_counter()

        async def noted(message: Message) -> None:
            nonlocal status, held
            if message["type"] == "http.response.start":
                status = message["status"]
                held = "wait" in Headers(raw=message["headers"]).get("preference-applied", "")
                _note_created(message)
            await send(message)

        metrics.in_progress.inc()
        try:
            await self.app(scope, receive, noted)
        finally:
            metrics.in_progress.dec()
            method = scope["method"] if scope["method"] in METHODS else "OTHER"
            route = _route(scope)
            seconds = time.perf_counter() - started
            metrics.observe(method, route, status, None if held else seconds)
            _note_job(scope)
            if route not in QUIET or status >= 400:
                log.info(
                    "call",
                    method=method,
                    route=route,
                    status=status,
                    duration_ms=round(1000 * seconds, 1),
                )


def _route(scope: Scope) -> str:
    """Template of the route that served the call."""
    route: Any = scope.get("route")
    return str(getattr(route, "path", "unmatched"))


def _note_created(message: Message) -> None:
    """Note the id of what the call made, so that its line leads to it."""
    found = ID.search(Headers(raw=message["headers"]).get("location", ""))
    if found and message["status"] in (201, 202):
        correlation.note(created=found[0])


def _note_job(scope: Scope) -> None:
    job_id = scope.get("path_params", {}).get("job_id", "")
    if ID.fullmatch(job_id):
        correlation.note(job_id=job_id)
