"""What routes ask for: sessions, the caller with a scope, and nothing unknown in the query."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from fastapi import Depends, Request, Security
from fastapi.dependencies.models import Dependant
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer, SecurityScopes
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from .. import bell, correlation
from ..store import isolation, keys
from ..store.errors import BadRequest, Forbidden, ServiceError
from ..store.session import reading, transaction
from .caller import identified

bearer = HTTPBearer(
    auto_error=False,
    scheme_name="key",
    bearerFormat="lth_...",
    description="An API key. Make one with `python -m app.keys create` or `POST /api-keys`.",
)


class NotAcceptable(ServiceError):
    """None of the media types that the caller takes."""

    status = 406
    default_code = "not_acceptable"


def read_session() -> Iterator[Session]:
    """Give a session that only reads and is closed before the answer is sent."""
    with reading() as session:
        yield session


@contextmanager
def writing() -> Iterator[Session]:
    """Give a transaction that is committed at the end of the block; then ring the dispatcher.

    No dependency: the end of those needs a thread, as making the answer does, and on SQLite all
    threads may be waiting for this very transaction to end.
    """
    with transaction() as session:
        yield session
    bell.nudge()


# scope="function": by default FastAPI would close it only after the answer is on its way.
ReadSession = Annotated[Session, Depends(read_session, scope="function")]


async def authenticated(
    http_request: Request,
    scopes: SecurityScopes,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
) -> keys.Caller:
    """Return who calls; refuse without a usable key (401), the scope (403), or a known query."""
    caller = await run_in_threadpool(identified, http_request, credentials)
    # Here, in the task of the call: what a thread sets is gone with it.
    isolation.act_for(caller.tenant_id)
    correlation.note(tenant=caller.tenant_id, key=caller.key_id)
    missing = [scope for scope in scopes.scopes if scope not in caller.scopes]
    if missing:
        raise Forbidden(
            detail=f"This key lacks the scope {missing[0]}.", extra={"required_scope": missing[0]}
        )
    known_parameters(http_request)
    acceptable(http_request)
    return caller


def requires(scope: str) -> Any:
    """Return the dependency on a caller who has ``scope``."""
    if scope not in keys.SCOPES:
        raise ValueError(f"no scope is called {scope}")
    return Security(authenticated, scopes=[scope])


def any_key() -> Any:
    """Return the dependency on a caller with any usable key; for what a key says of itself."""
    return Security(authenticated, scopes=[])


def acceptable(http_request: Request) -> None:
    """Refuse a call that takes none of the media types that the route answers with."""
    wanted = http_request.headers.getlist("accept")
    if not wanted:
        return
    ranges = [part.partition(";")[0].strip().lower() for part in ",".join(wanted).split(",")]
    offered = _media_types(http_request.scope["route"])
    taken = {"*/*", *offered, *(f"{name.partition('/')[0]}/*" for name in offered)}
    if offered and taken.isdisjoint(ranges):
        raise NotAcceptable(detail=f"This route answers with {', '.join(sorted(offered))}.")


def _media_types(route: Any) -> set[str]:
    """The media types of a route's answers that are no problems; none where it has no body."""
    if route.status_code in (204, 303):
        return set()
    found = {
        name
        for status, response in route.responses.items()
        if str(status).startswith("2")
        for name in response.get("content", {})
    }
    return found or {"application/json"}


def known_parameters(http_request: Request) -> None:
    """Refuse query parameters that the route does not know: none is ever ignored."""
    known = _query_names(http_request.scope["route"].dependant)
    unknown = sorted(set(http_request.query_params) - known)
    if unknown:
        name = unknown[0][:64]
        raise BadRequest(
            "unknown_parameter",
            f"There is no query parameter {name!r} here.",
            errors=[
                {"pointer": f"query:{name}", "message": "unknown", "code": "unknown_parameter"}
            ],
        )


def _query_names(dependant: Dependant) -> set[str]:
    names = {field.alias for field in dependant.query_params}
    for inner in dependant.dependencies:
        names |= _query_names(inner)
    return names
