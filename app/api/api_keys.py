"""API keys of the caller's tenant."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Request, Response
from pydantic import Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from ..store import keys, tables
from ..store.errors import Conflict, Forbidden, NotFound, Unacceptable
from . import examples
from .deps import ReadSession, WriteSession, requires
from .idempotency import Answer, OptionalOnce
from .ids import KeyId
from .listing import Pages, page_of
from .problems import problems
from .schema import accepts
from .shapes import Links, Name, Page, Shape
from .strict_json import Body, json_body

router = APIRouter(tags=["access"])
SCOPE_NAMES = ", ".join(f"`{scope}`" for scope in sorted(keys.SCOPES))


class ApiKeyCreate(Shape):
    """What a new key may do, and for how long."""

    name: Name
    scopes: list[str] = Field(
        min_length=1,
        description=f"Some of {SCOPE_NAMES}.",
        json_schema_extra={"items": {"type": "string", "enum": [*sorted(keys.SCOPES)]}},
    )
    expires_in_days: Annotated[int, Field(ge=1, le=365)] = 90


class ApiKey(Shape):
    """A key without its secret."""

    object: Literal["api_key"] = "api_key"
    id: str
    name: str
    scopes: list[str]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    links: Links


class ApiKeyWithSecret(ApiKey):
    """A new key; `secret` is in this answer only."""

    secret: str | None = Field(description="Shown once. Null when the answer is replayed.")


@router.post(
    "/api-keys",
    status_code=201,
    operation_id="create_api_key",
    response_model=ApiKeyWithSecret,
    responses=problems(Forbidden, Unacceptable),
    openapi_extra=accepts("ApiKeyCreate", examples.API_KEYS),
)
def create_api_key(
    caller: Annotated[keys.Caller, requires("keys:manage")],
    once: OptionalOnce,
    body: Annotated[Body[ApiKeyCreate], Depends(json_body(ApiKeyCreate))],
) -> Response:
    """Make a key for your own tenant, with no more scopes than yours. Its secret is shown once."""
    return once.answer(
        caller, body.fingerprint, lambda session: _create(session, caller, body.value)
    )


@router.get("/api-keys", operation_id="list_api_keys", response_model=Page[ApiKey])
def list_api_keys(
    caller: Annotated[keys.Caller, requires("keys:manage")],
    paging: Pages,
    session: ReadSession,
    http_request: Request,
    http_response: Response,
) -> Page[ApiKey]:
    """List keys, newest first; revoked ones too."""
    chosen = select(tables.ApiKey)
    return page_of(http_request, http_response, session, caller, chosen, paging, shapes)


@router.get(
    "/api-keys/{key_id}",
    operation_id="get_api_key",
    response_model=ApiKey,
    responses=problems(NotFound),
)
def get_api_key(
    caller: Annotated[keys.Caller, requires("keys:manage")],
    key_id: KeyId,
    session: ReadSession,
) -> ApiKey:
    """Read one key; its secret is never shown again."""
    return shapes([keys.find(session, caller.tenant_id, key_id)])[0]


@router.delete(
    "/api-keys/{key_id}",
    status_code=204,
    operation_id="revoke_api_key",
    responses=problems(NotFound, Conflict),
)
def revoke_api_key(
    caller: Annotated[keys.Caller, requires("keys:manage")],
    key_id: KeyId,
    session: WriteSession,
) -> None:
    """Revoke a key at once; the last one that can manage keys stays."""
    keys.revoke(session, caller.tenant_id, key_id)


def shapes(rows: Sequence[tables.ApiKey]) -> list[ApiKey]:
    """Return the shapes of key rows."""
    return [
        ApiKey(
            id=row.id,
            name=row.name,
            scopes=row.scopes,
            created_at=row.created_at,
            expires_at=row.expires_at,
            revoked_at=row.revoked_at,
            last_used_at=row.last_used_at,
            links={"self": f"/api-keys/{row.id}"},
        )
        for row in rows
    ]


def _create(session: Session, caller: keys.Caller, wanted: ApiKeyCreate) -> Answer:
    unknown = sorted(set(wanted.scopes) - keys.SCOPES)
    if unknown:
        raise Unacceptable(
            detail="There is no such scope.",
            errors=[
                {
                    "pointer": f"/scopes/{wanted.scopes.index(unknown[0])}",
                    "message": "unknown scope",
                    "code": "validation_failed",
                }
            ],
        )
    beyond = sorted(set(wanted.scopes) - caller.scopes)
    if beyond:
        raise Forbidden(
            detail=f"This key lacks the scope {beyond[0]}, so it can't give it.",
            extra={"required_scope": beyond[0]},
        )
    expires_at = datetime.now(UTC) + timedelta(days=wanted.expires_in_days)
    row, secret = keys.create(session, caller.tenant_id, wanted.name, wanted.scopes, expires_at)
    body = ApiKeyWithSecret(**shapes([row])[0].model_dump(), secret=secret)
    return Answer(201, body, {"Location": f"/api-keys/{row.id}"}, frozenset({"secret"}))
