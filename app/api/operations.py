"""For those who run the service: its figures, and which version it is."""

from __future__ import annotations

import hmac
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response, Security
from fastapi.security import HTTPAuthorizationCredentials, SecurityScopes
from pydantic import Field

from .. import __version__
from ..store import isolation, session
from . import metrics
from .deps import authenticated, bearer, known_parameters, requires
from .shapes import Shape

router = APIRouter(tags=["operations"])


class VersionOfService(Shape):
    """Which version answers."""

    version: str
    schema_revision: str | None = Field(
        description="Newest migration that was applied to the database; null before the first."
    )


async def scraper(
    http_request: Request,
    scopes: SecurityScopes,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
) -> None:
    """Let in whoever has the token of the settings, or a key with the scope."""
    token = session.settings().metrics_token
    if token is not None and credentials is not None:
        given = credentials.credentials.encode()
        if hmac.compare_digest(given, token.get_secret_value().encode()):
            known_parameters(http_request)
            return
    await authenticated(http_request, scopes, credentials)


@router.get(
    "/metrics",
    operation_id="get_metrics",
    dependencies=[Security(scraper, scopes=["ops:read"])],
    response_class=Response,
    responses={
        200: {
            "description": "Figures of the whole service in the text format of Prometheus; none "
            "tells one tenant from another.",
            "content": {"text/plain": {"schema": {"type": "string"}}},
        }
    },
)
def get_metrics() -> Response:
    """Return the figures of the service, for Prometheus."""
    with isolation.across_tenants():
        return Response(metrics.exposition(), media_type=metrics.MEDIA_TYPE)


@router.get(
    "/version",
    operation_id="get_service_version",
    dependencies=[requires("ops:read")],
    response_model=VersionOfService,
)
def get_service_version() -> VersionOfService:
    """Return the version of the service and of its tables."""
    return VersionOfService(version=__version__, schema_revision=session.revision())
