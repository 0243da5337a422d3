"""What routes ask for: sessions, the caller with a scope, and nothing unknown in the query."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import Depends, Request, Security
from fastapi.dependencies.models import Dependant
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer, SecurityScopes
from sqlalchemy.orm import Session

from .. import bell, correlation
from ..store import keys
from ..store.errors import BadRequest, Forbidden, Unauthenticated
from ..store.session import reading, transaction

bearer = HTTPBearer(
    auto_error=False,
    scheme_name="key",
    bearerFormat="lth_...",
    description="An API key. Make one with `python -m app.keys create` or `POST /api-keys`.",
)
CHALLENGE = {"WWW-Authenticate": 'Bearer realm="lethe"'}


def read_session() -> Iterator[Session]:
    """Give a session that only reads and is closed before the answer is sent."""
    with reading() as session:
        yield session


def write_session() -> Iterator[Session]:
    """Give a transaction that is committed before the answer is sent; then ring the dispatcher."""
    with transaction() as session:
        yield session
    bell.nudge()


# scope="function": by default FastAPI would commit only after the answer is on its way.
ReadSession = Annotated[Session, Depends(read_session, scope="function")]
WriteSession = Annotated[Session, Depends(write_session, scope="function")]


def authenticated(
    http_request: Request,
    scopes: SecurityScopes,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
) -> keys.Caller:
    """Return who calls; refuse without a usable key (401), the scope (403), or a known query."""
    caller = _caller(credentials)
    correlation.note(tenant=caller.tenant_id)
    missing = [scope for scope in scopes.scopes if scope not in caller.scopes]
    if missing:
        raise Forbidden(
            detail=f"This key lacks the scope {missing[0]}.", extra={"required_scope": missing[0]}
        )
    known_parameters(http_request)
    return caller


def _caller(credentials: HTTPAuthorizationCredentials | None) -> keys.Caller:
    # One same answer for every reason: it must not tell which keys exist.
    refused = Unauthenticated(detail="Give a valid API key as a bearer token.", headers=CHALLENGE)
    if credentials is None or not credentials.credentials.isascii():
        raise refused
    try:
        with reading() as session:
            return keys.authenticate(session, credentials.credentials)
    except Unauthenticated:
        raise refused from None


def requires(scope: str) -> Any:
    """Return the dependency on a caller who has ``scope``."""
    if scope not in keys.SCOPES:
        raise ValueError(f"no scope is called {scope}")
    return Security(authenticated, scopes=[scope])


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
