"""Unlearn requests, the legal view: whom or what to forget, and by when."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from core.situation import Situation

from ..store import admission, models, requests, situations, tables
from ..store.errors import BadRequest, Conflict, NotFound, Unacceptable
from ..store.keys import Caller
from ..store.session import reading
from ..store.status import REQUEST_TERMINAL, RequestStatus
from . import examples, limits
from .deps import ReadSession, requires, writing
from .idempotency import Answer, RequiredOnce
from .ids import ModelFilter, RequestId
from .listing import Pages, page_of
from .problems import problems
from .request_shapes import (
    PRIORITIES,
    ForgetSamples,
    ForgetSubject,
    UnlearnRequest,
    UnlearnRequestCreate,
    class_of,
    model_of,
    shape,
    shapes,
)
from .schema import accepts
from .shapes import Page
from .strict_json import Body, json_body
from .variants import refuse_idle, unlearner
from .waiting import NOT_MODIFIED, IfNoneMatch, Wait, conditional, retry_after, settled

router = APIRouter(tags=["unlearn requests"])
CLOCK_SKEW = timedelta(minutes=5)
EARLIEST = datetime(1970, 1, 2, tzinfo=UTC)


@router.post(
    "/unlearn-requests",
    status_code=202,
    operation_id="create_unlearn_request",
    response_model=UnlearnRequest,
    responses=problems(BadRequest, NotFound, Conflict, Unacceptable),
    openapi_extra=accepts("UnlearnRequestCreate", examples.UNLEARN_REQUESTS),
)
def create_unlearn_request(
    caller: Annotated[Caller, requires("requests:create")],
    once: RequiredOnce,
    body: Annotated[Body[UnlearnRequestCreate], Depends(json_body(UnlearnRequestCreate))],
) -> Response:
    """Ask for records, a subject or a class to be forgotten by a model.

    A model that was registered without its dataset takes the selector `samples` alone, any other
    model all but that one; else the answer is `selector_not_applicable`.

    The request has its job at once; poll that. References to subjects are hashed here and never
    stored, logged or repeated. Records that were never trained on, or are forgotten already, end
    as `no_influence`. An `Idempotency-Key` is required. The answer tells whether somebody is in the
    data, and a request can be cancelled, so subjects have a limit of calls.
    """
    if isinstance(body.value.forget, ForgetSubject):
        limits.limiter().count_lookup(caller)
    return once.answer(
        caller, body.fingerprint, lambda session: _receive(session, caller, body.value)
    )


@router.get(
    "/unlearn-requests",
    operation_id="list_unlearn_requests",
    response_model=Page[UnlearnRequest],
    responses=problems(BadRequest),
)
def list_unlearn_requests(
    caller: Annotated[Caller, requires("requests:read")],
    paging: Pages,
    session: ReadSession,
    http_request: Request,
    http_response: Response,
    status: Annotated[list[RequestStatus] | None, Query(description="Repeatable.")] = None,
    model: Annotated[ModelFilter, Query(description="Only of this model.")] = None,
) -> Page[UnlearnRequest]:
    """List unlearn requests, newest first."""
    chosen = select(tables.Request)
    if status:
        chosen = chosen.where(tables.Request.status.in_(status))
    if model is not None:
        chosen = chosen.where(tables.Request.model_id == model)
    return page_of(
        http_request, http_response, session, caller, chosen, paging, partial(shapes, session)
    )


@router.get(
    "/unlearn-requests/{request_id}",
    operation_id="get_unlearn_request",
    response_model=UnlearnRequest,
    responses={**problems(NotFound), **NOT_MODIFIED},
)
async def get_unlearn_request(
    caller: Annotated[Caller, requires("requests:read")],
    request_id: RequestId,
    http_request: Request,
    wait: Wait,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Read one request; with `Prefer: wait=30` the answer waits until it is decided."""

    def read() -> UnlearnRequest:
        with reading() as session:
            return shape(session, requests.get(session, caller.tenant_id, request_id))

    found = await settled(http_request, wait, read, _is_decided)
    again = None if _is_decided(found) else retry_after(None)
    return conditional(found, if_none_match, wait=wait, retry_after=again)


@router.delete(
    "/unlearn-requests/{request_id}",
    status_code=202,
    operation_id="cancel_unlearn_request",
    response_model=UnlearnRequest,
    responses=problems(NotFound, Conflict),
)
def cancel_unlearn_request(
    caller: Annotated[Caller, requires("requests:create")],
    request_id: RequestId,
) -> UnlearnRequest:
    """Cancel a request that is not decided yet; its job goes on for the others it serves."""
    with writing() as session:
        requests.cancel(session, caller.tenant_id, request_id)
        return shape(session, requests.get(session, caller.tenant_id, request_id))


def _is_decided(found: UnlearnRequest) -> bool:
    return found.status in REQUEST_TERMINAL or found.status == "needs_attention"


def _receive(session: Session, caller: Caller, wanted: UnlearnRequestCreate) -> Answer:
    now = datetime.now(UTC)
    received_at = wanted.received_at or now
    if not EARLIEST < received_at < now + CLOCK_SKEW:
        raise _wrong("/received_at", "Give a time in the past, after 1970.")
    model_id = model_of(wanted.model)
    forget = wanted.forget
    chosen = unlearner(wanted.unlearner)
    admission.refuse_selector(models.get(session, caller.tenant_id, model_id), forget.type)
    known = _situation(session, caller.tenant_id, model_id, wanted)
    refuse_idle(chosen, known, wanted.bn_policy)
    row = requests.receive(
        session,
        caller.tenant_id,
        model_id=model_id,
        selector=forget.type,
        record_ids=getattr(forget, "record_ids", None),
        subject=forget.subject_ref if isinstance(forget, ForgetSubject) else None,
        class_index=class_of(forget),
        samples=forget.dataset if isinstance(forget, ForgetSamples) else None,
        ignore_missing=getattr(forget, "ignore_missing", False),
        policy=wanted.policy,
        unlearner=chosen,
        options=wanted.model_dump(
            include={"seed", "batch_size", "bn_policy", "time_limit_seconds"}
        ),
        reason=wanted.reason,
        received_at=received_at,
        meta=wanted.metadata,
        purpose=wanted.purpose,
        priority=PRIORITIES[wanted.priority],
    )
    headers = {"Location": f"/unlearn-requests/{row.id}", "Retry-After": str(retry_after(None))}
    return Answer(202, shape(session, row), headers)


def _situation(
    session: Session, tenant_id: str, model_id: str, wanted: UnlearnRequestCreate
) -> Situation:
    """Return what is known before the records are looked up."""
    model = models.get(session, tenant_id, model_id)
    return situations.situation(
        model,
        models.dataset_of(session, model),
        policy=wanted.policy,
        selector="records" if class_of(wanted.forget) is None else "class",
        num_forget=0,
        version=models.current(session, model),
        purpose=wanted.purpose,
    )


def _wrong(pointer: str, message: str) -> Unacceptable:
    error = {"pointer": pointer, "message": message, "code": "validation_failed"}
    return Unacceptable(detail=message, errors=[error])
