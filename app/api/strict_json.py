"""The one reader of JSON: everything that two parsers could read differently is refused."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from ..store.errors import BadRequest, TooLarge, Unacceptable, Unsupported
from .pace import paced
from .validation import refusal

MAX_BYTES = 2**20
MAX_DEPTH = 64
EXACT = 2**53
"""From here on not every integer is a float."""
Shape = TypeVar("Shape", bound=BaseModel)


@dataclass(frozen=True)
class Body(Generic[Shape]):
    """A validated body, and the digest of its canonical form."""

    value: Shape
    fingerprint: str


def loads(raw: bytes) -> Any:
    """Parse JSON strictly.

    Raises:
        TooLarge: over 1 MiB.
        BadRequest: ``malformed_json`` or ``duplicate_json_key``.
        Unacceptable: ``invalid_number`` or ``invalid_characters``.
    """
    if len(raw) > MAX_BYTES:
        raise TooLarge(detail=f"JSON is limited to {MAX_BYTES} bytes.")
    try:
        text = raw.decode("utf-8")
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_float=_number,
            parse_int=_int64,
        )
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        raise BadRequest("malformed_json", "The body is not one UTF-8 JSON value.") from None
    _inspect(value)
    return value


def parse(raw: bytes, shape: type[Shape]) -> Body[Shape]:
    """Parse JSON strictly and validate it as ``shape``."""
    value = loads(raw)
    try:
        # What was read is what is judged: no second parser sees the bytes.
        parsed = shape.model_validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        raise refusal(error.errors(include_input=False, include_url=False), value) from None
    return Body(parsed, digest_of(value))


def digest_of(value: Any) -> str:
    """Return the SHA-256 of the canonical form of a JSON value."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def json_body(shape: type[Shape]) -> Callable[[Request], Any]:
    """Return a dependency that reads the body of a call as ``shape``."""

    async def read(http_request: Request) -> Body[Shape]:
        check_encoding(http_request)
        _check_media_type(http_request)
        return parse(await read_bytes(http_request), shape)

    return read


def optional_body(shape: type[Shape]) -> Callable[[Request], Any]:
    """Like ``json_body``, where no body at all means an empty object."""

    async def read(http_request: Request) -> Body[Shape]:
        check_encoding(http_request)
        raw = await read_bytes(http_request)
        if not raw:
            return parse(b"{}", shape)
        _check_media_type(http_request)
        return parse(raw, shape)

    return read


async def read_bytes(http_request: Request, limit: int = MAX_BYTES) -> bytes:
    """Read at most ``limit`` bytes; refuse more before reading where the length is announced."""
    refuse_announced(http_request, limit)
    raw = bytearray()
    async with paced() as took:
        async for chunk in http_request.stream():
            took(len(chunk))
            raw += chunk
            if len(raw) > limit:
                raise TooLarge(detail=f"The body is limited to {limit} bytes.")
    return bytes(raw)


def refuse_announced(http_request: Request, limit: int) -> None:
    """Refuse a call whose ``Content-Length`` is over ``limit``, before the body is read."""
    announced = http_request.headers.get("content-length", "0")
    if not re.fullmatch(r"[0-9]{1,19}", announced):
        raise BadRequest(detail="Content-Length is not a number.")
    if int(announced) > limit:
        raise TooLarge(detail=f"The body is limited to {limit} bytes.")


def check_encoding(http_request: Request) -> None:
    """Refuse compressed bodies: their size cannot be bounded before they are opened."""
    encoding = http_request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise Unsupported("unsupported_content_encoding", "Send the body without encoding.")


def _check_media_type(http_request: Request) -> None:
    media_type = http_request.headers.get("content-type", "")
    if not is_json(media_type):
        raise Unsupported(detail="Send the body as application/json.")


def is_json(media_type: str) -> bool:
    """Whether a ``Content-Type`` is JSON in UTF-8."""
    essence, _, options = media_type.lower().partition(";")
    charset = re.search(r"charset\s*=\s*\"?([^\s;\"]+)", options)
    if charset and charset[1] not in ("utf-8", "utf8"):
        return False
    essence = essence.strip()
    return essence == "application/json" or bool(
        re.fullmatch(r"application/[\w.-]+\+json", essence)
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise BadRequest("duplicate_json_key", "An object names the same key twice.")
    return value


def _no_constant(name: str) -> float:
    raise Unacceptable("invalid_number", f"{name} is not a JSON number.")


def _number(text: str) -> float:
    """Read a number with a point or an exponent; a whole one is an integer, as in JSON Schema."""
    value = float(text)
    if not math.isfinite(value):
        raise Unacceptable("invalid_number", "A number is too large for a float.")
    return int(value) if value.is_integer() and abs(value) < EXACT else value


def _int64(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= int(text) < 2**63:
        raise Unacceptable("invalid_number", "An integer does not fit 64 bits.")
    return int(text)


def _inspect(value: Any) -> None:
    """Refuse NUL, lone surrogates and too deep nesting anywhere in ``value``."""
    level = [value]
    for _ in range(MAX_DEPTH):
        deeper: list[Any] = []
        for item in level:
            if isinstance(item, str):
                _check_text(item)
            elif isinstance(item, list):
                deeper.extend(item)
            elif isinstance(item, dict):
                deeper.extend(item.keys())
                deeper.extend(item.values())
        if not deeper:
            return
        level = deeper
    raise BadRequest("malformed_json", f"The body is nested over {MAX_DEPTH} levels deep.")


def _check_text(text: str) -> None:
    if "\x00" in text or re.search("[\ud800-\udfff]", text):
        raise Unacceptable("invalid_characters", "A string holds NUL or a lone surrogate.")
