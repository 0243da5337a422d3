"""What can go wrong with records, each with a status and a stable code.

ServiceError
|-- BadRequest      400
|-- Unauthenticated 401
|-- Forbidden       403
|-- NotFound        404   also for everything that belongs to another tenant
|-- Conflict        409
|-- Gone            410
|-- TooLarge        413
|-- Unsupported     415
|-- Unacceptable    422   well-formed, but not to be done
|-- TooMany         429   too many calls or things at once; says when to come again
`-- Unavailable     503   names the missing dependency
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


class ServiceError(Exception):
    """Base of every refusal; rendered as a problem document by ``app/api/problems.py``.

    Args:
        code: stable snake_case code.
        detail: one sentence for people, without personal data.
        errors: ``{"pointer", "message", "code"}`` per wrong field.
        headers: response headers.
        extra: further members of the problem document.
    """

    status: ClassVar[int] = 500
    default_code: ClassVar[str] = "internal"

    def __init__(
        self,
        code: str | None = None,
        detail: str = "",
        *,
        errors: list[dict[str, str]] | None = None,
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.code = code or self.default_code
        self.detail = detail
        self.errors = errors or []
        self.headers = dict(headers or {})
        self.extra = dict(extra or {})


class BadRequest(ServiceError):
    """The call itself is malformed."""

    status = 400
    default_code = "malformed_request"


class Unauthenticated(ServiceError):
    """No usable key."""

    status = 401
    default_code = "unauthenticated"


class Forbidden(ServiceError):
    """The key lacks the scope."""

    status = 403
    default_code = "insufficient_scope"


class NotFound(ServiceError):
    """No such thing, or not this tenant's."""

    status = 404
    default_code = "not_found"


class Conflict(ServiceError):
    """The state does not allow it."""

    status = 409
    default_code = "state_conflict"


class Gone(ServiceError):
    """It was withdrawn or deleted."""

    status = 410
    default_code = "gone"


class TooLarge(ServiceError):
    """More bytes than allowed."""

    status = 413
    default_code = "payload_too_large"


class Unsupported(ServiceError):
    """A media type or an encoding that is not taken."""

    status = 415
    default_code = "unsupported_media_type"


class Unacceptable(ServiceError):
    """Well-formed, but not to be done."""

    status = 422
    default_code = "validation_failed"


class TooMany(ServiceError):
    """Too many calls, or too many things at once."""

    status = 429
    default_code = "rate_limited"


class Unavailable(ServiceError):
    """A dependency is missing; ``detail`` names it."""

    status = 503
    default_code = "database_unavailable"
