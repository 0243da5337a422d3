"""Creating calls happen once per ``Idempotency-Key``; the same call again gets the same answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Annotated, Any

from fastapi import Depends, Header, Request
from pydantic import BaseModel
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from starlette.responses import JSONResponse, Response

from .. import bell
from ..store import idempotency
from ..store.errors import BadRequest, Conflict
from ..store.failpoints import failpoint
from ..store.keyed import keyed_hash
from ..store.keys import Caller
from ..store.session import transaction

REPLAYED = "Idempotency-Replayed"
Identity = tuple[str, str, str, str, str]
_at_work: set[Identity] = set()
_lock = Lock()


@dataclass(frozen=True)
class Answer:
    """What a creating call answers, and what is remembered of it."""

    status: int
    body: BaseModel
    headers: dict[str, str] = field(default_factory=dict)
    secrets: frozenset[str] = frozenset()
    """Fields of the body that are shown once and must not be remembered."""


Act = Callable[[Session], Answer]


@dataclass(frozen=True)
class Once:
    """The idempotency key of a call, or none."""

    method: str
    path: str
    key: str | None

    @contextmanager
    def at_work(self, caller: Caller) -> Iterator[None]:
        """Refuse a second call with the same key while the first is at work in this process."""
        if self.key is None:
            yield
            return
        identity = (caller.tenant_id, caller.principal, self.method, self.path, self.key)
        with _lock:
            if identity in _at_work:
                raise Conflict(
                    "idempotency_in_progress",
                    "The first call with this Idempotency-Key is still at work.",
                    headers={"Retry-After": "1"},
                )
            _at_work.add(identity)
        try:
            yield
        finally:
            with _lock:
                _at_work.discard(identity)

    def answer(self, caller: Caller, fingerprint: str, act: Act) -> Response:
        """Run ``act`` in one transaction with its remembered answer, or replay that answer.

        A unique violation means that another process was faster with the same key: the second
        look then finds its answer.
        """
        with self.at_work(caller):
            return self.settle(caller, fingerprint, act)

    def replay(self, caller: Caller, fingerprint: str) -> Response | None:
        """Return the remembered answer, if this call was made before."""
        if self.key is None:
            return None
        kept = keyed_hash("fingerprint", caller.tenant_id, fingerprint)
        with transaction() as session:
            stored = idempotency.remembered(session, caller, self.method, self.path, self.key, kept)
            return None if stored is None else _replay(stored)

    def settle(self, caller: Caller, fingerprint: str, act: Act) -> Response:
        """Do as ``answer``, for a caller that already holds ``at_work``."""
        # A plain digest of a body with a guessable subject could be guessed as well.
        kept = keyed_hash("fingerprint", caller.tenant_id, fingerprint)
        for last in (False, True):
            try:
                return self._attempt(caller, kept, act)
            except IntegrityError:
                if last:
                    raise
        raise AssertionError("unreachable")

    def _attempt(self, caller: Caller, fingerprint: str, act: Act) -> Response:
        with transaction() as session:
            stored = None
            if self.key is not None:
                stored = idempotency.remembered(
                    session, caller, self.method, self.path, self.key, fingerprint
                )
            if stored is not None:
                return _replay(stored)
            answer = act(session)
            body = answer.body.model_dump(mode="json")
            if self.key is not None:
                kept = {k: None if k in answer.secrets else v for k, v in body.items()}
                idempotency.remember(
                    session,
                    caller,
                    self.method,
                    self.path,
                    self.key,
                    fingerprint,
                    status_code=answer.status,
                    headers=answer.headers,
                    body=kept,
                )
            failpoint("api.before_commit")
        failpoint("api.after_commit")
        bell.nudge()
        return JSONResponse(body, status_code=answer.status, headers=answer.headers)


def _replay(stored: Any) -> Response:
    headers = {**stored.headers, REPLAYED: "true"}
    return JSONResponse(stored.body, status_code=stored.status_code, headers=headers)


KEY = Header(
    alias="Idempotency-Key",
    description="1 to 255 printable ASCII characters. The same key with the same body gets the "
    "same answer again, marked `Idempotency-Replayed: true`.",
    # Told, not enforced: a refusal has a code of its own.
    json_schema_extra={"minLength": 1, "maxLength": 255, "pattern": "^[!-~]([ -~]*[!-~])?$"},
)


def once(http_request: Request, idempotency_key: Annotated[str | None, KEY] = None) -> Once:
    """Read an optional ``Idempotency-Key``."""
    if idempotency_key is not None and not re.fullmatch(r"[\x20-\x7e]{1,255}", idempotency_key):
        raise BadRequest(
            "idempotency_key_invalid", "Idempotency-Key takes 1 to 255 printable ASCII characters."
        )
    return Once(http_request.method, http_request.scope["path"], idempotency_key)


def required_once(found: Annotated[Once, Depends(once)]) -> Once:
    """Read an ``Idempotency-Key`` that must be given."""
    if found.key is None:
        raise BadRequest(
            "idempotency_key_required",
            "Give an Idempotency-Key: a deletion request must not start two legal clocks.",
        )
    return found


OptionalOnce = Annotated[Once, Depends(once)]
RequiredOnce = Annotated[Once, Depends(required_once)]
