"""API keys of the caller's tenant."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Request, Response
from pydantic import Field, IPvAnyNetwork
from sqlalchemy import select
from sqlalchemy.orm import Session

from ..store import keys, tables
from ..store.errors import Conflict, Forbidden, NotFound, Unacceptable
from ..store.scopes import of_role, roles_within
from . import examples
from .deps import ReadSession, any_key, requires, writing
from .idempotency import Answer, OptionalOnce
from .ids import KeyId
from .listing import Pages, page_of
from .problems import problems
from .schema import accepts
from .shapes import Links, Name, Page, Shape
from .strict_json import Body, json_body

router = APIRouter(tags=["access"])
Role = Literal["ml_engineer", "privacy_officer", "sre", "auditor", "pipeline", "admin"]
Days = Annotated[int, Field(ge=1, le=keys.MOST_DAYS)]
SCOPE_NAMES = ", ".join(f"`{scope}`" for scope in sorted(keys.SCOPES))


class ApiKeyCreate(Shape):
    """What a new key may do, and for how long."""

    name: Name
    scopes: list[str] = Field(
        [],
        max_length=64,
        description=f"Some of {SCOPE_NAMES}; at least one, or a role.",
        json_schema_extra={"items": {"type": "string", "enum": [*sorted(keys.SCOPES)]}},
    )
    roles: list[Role] = Field(
        [], max_length=8, description="Named sets of scopes, beside those of `scopes`."
    )
    networks: list[IPvAnyNetwork] = Field(
        [], max_length=32, description="CIDR ranges that it may be used from; anywhere if empty."
    )
    expires_in_days: Days = 90

    @property
    def all_scopes(self) -> list[str]:
        """Those named and those of the role."""
        return sorted({*self.scopes, *(each for role in self.roles for each in of_role(role))})


class ApiKeyRotate(Shape):
    """How a key is replaced by a new one."""

    overlap_hours: Annotated[int, Field(ge=0, le=168)] = Field(
        24, description="How long the old key is still good; 0: no longer."
    )
    expires_in_days: Days = 90


class ApiKey(Shape):
    """A key without its secret."""

    object: Literal["api_key"] = "api_key"
    id: str
    name: str
    scopes: list[str]
    roles: list[str] = Field(description="Roles all of whose scopes it has.")
    networks: list[str]
    principal: str = Field(description="The first key of the line that rotation made.")
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    links: Links


class ApiKeyWithSecret(ApiKey):
    """A new key; `secret` is in this answer only."""

    secret: str | None = Field(description="Shown once. Null when the answer is replayed.")


class Owner(Shape):
    """A tenant."""

    id: str
    name: str


class Me(Shape):
    """Who calls."""

    object: Literal["me"] = "me"
    tenant: Owner
    key: ApiKey


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


@router.post(
    "/api-keys/{key_id}/rotate",
    status_code=201,
    operation_id="rotate_api_key",
    response_model=ApiKeyWithSecret,
    responses=problems(Forbidden, NotFound, Conflict, Unacceptable),
    openapi_extra=accepts("ApiKeyRotate", examples.ROTATIONS),
)
def rotate_api_key(
    caller: Annotated[keys.Caller, requires("keys:manage")],
    key_id: KeyId,
    once: OptionalOnce,
    body: Annotated[Body[ApiKeyRotate], Depends(json_body(ApiKeyRotate))],
) -> Response:
    """Make a key's successor with the same scopes; both are good while they overlap.

    The successor stands for the same principal: what was sent with the old key and an
    `Idempotency-Key` is replayed to the new one, too.
    """
    return once.answer(
        caller, body.fingerprint, lambda session: _rotate(session, caller, key_id, body.value)
    )


@router.get("/me", operation_id="get_me", response_model=Me)
def get_me(caller: Annotated[keys.Caller, any_key()], session: ReadSession) -> Me:
    """Say who you are: the tenant, and what your key may do. Any key may ask."""
    key = keys.find(session, caller.tenant_id, caller.key_id)
    tenant = session.get_one(tables.Tenant, caller.tenant_id)
    return Me(tenant=Owner(id=tenant.id, name=tenant.name), key=shapes([key])[0])


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
) -> None:
    """Revoke a key at once; the last one that can manage keys stays."""
    with writing() as session:
        keys.revoke(session, caller.tenant_id, key_id)


def shapes(rows: Sequence[tables.ApiKey]) -> list[ApiKey]:
    """Return the shapes of key rows."""
    return [
        ApiKey(
            id=row.id,
            name=row.name,
            scopes=row.scopes,
            roles=roles_within(frozenset(row.scopes)),
            networks=row.networks,
            principal=row.principal_id,
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
        raise _wrong(f"/scopes/{wanted.scopes.index(unknown[0])}", "There is no such scope.")
    if not wanted.all_scopes:
        raise _wrong("/scopes", "Give a role, or at least one scope.")
    networks = [str(network) for network in wanted.networks]
    networks = networks or [str(network) for network in caller.networks]
    keys.refuse_wider(caller, wanted.all_scopes, networks)
    made = keys.create(
        session,
        caller.tenant_id,
        wanted.name,
        wanted.all_scopes,
        _end(wanted.expires_in_days),
        networks=networks,
    )
    return _shown_once(*made)


def _rotate(session: Session, caller: keys.Caller, key_id: str, wanted: ApiKeyRotate) -> Answer:
    old = keys.find(session, caller.tenant_id, key_id)
    keys.refuse_wider(caller, old.scopes, old.networks)
    made = keys.rotate(
        session,
        caller.tenant_id,
        key_id,
        expires_at=_end(wanted.expires_in_days),
        overlap=timedelta(hours=wanted.overlap_hours),
    )
    return _shown_once(*made)


def _shown_once(row: tables.ApiKey, secret: str) -> Answer:
    body = ApiKeyWithSecret(**shapes([row])[0].model_dump(), secret=secret)
    return Answer(201, body, {"Location": f"/api-keys/{row.id}"}, frozenset({"secret"}))


def _end(days: int) -> datetime:
    return datetime.now(UTC) + timedelta(days=days)


def _wrong(pointer: str, message: str) -> Unacceptable:
    error = {"pointer": pointer, "message": message, "code": "validation_failed"}
    return Unacceptable(detail=message, errors=[error])
