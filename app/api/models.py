"""Models: register one with its weights, read it, delete it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field, WithJsonSchema
from sqlalchemy import select
from sqlalchemy.orm import Session

from core import formats
from core.data import Preprocessing
from core.recipe import Recipe

from ..store import models, tables
from ..store.errors import (
    BadRequest,
    Conflict,
    Gone,
    NotFound,
    TooLarge,
    Unacceptable,
    Unsupported,
)
from ..store.keys import Caller
from ..store.session import reading, settings
from ..store.status import ModelStatus
from . import examples, fit, versions
from .adoption import attached_key
from .creation import Register, create
from .deps import ReadSession, requires, writing
from .idempotency import Answer, OptionalOnce
from .ids import ModelId
from .listing import Pages, page_of
from .problems import problems
from .schema import uploads_of
from .shapes import Links, Metadata, Name, Page, Shape
from .sources import FileSource, Sourced
from .uploads import Upload
from .waiting import NOT_MODIFIED, IfNoneMatch, Wait, conditional, retry_after, settled

router = APIRouter(tags=["models"])
HEADER = "X-Model-Metadata"
IMPORTANCE = "importance"
ABOUT_IMPORTANCE = (
    "Safetensors, instead of `dataset`: the importance of every parameter for the training data, "
    "as `core.importance.save` writes it where that data is. At most as large as a model may be."
)
Architecture = Annotated[
    dict[str, Any],
    WithJsonSchema(
        {
            "type": "object",
            "required": ["name"],
            "properties": {"name": {"type": "string", "examples": ["torchvision/resnet18"]}},
            "additionalProperties": True,
            "description": "A name of `GET /networks` with its options.",
        }
    ),
]


class ModelCreate(Sourced):
    """What comes along with a checkpoint, or names where it lies."""

    name: Name
    architecture: Architecture
    preprocessing: Preprocessing = Field(description="From stored values to network input.")
    dataset: str | None = Field(
        None,
        description="Id of the dataset it was trained on. Null where that stays elsewhere: the "
        "part `importance` is then needed, and its records are forgotten by sending them with the "
        "request (selector `samples`).",
    )
    holdout: str | None = Field(
        None,
        description="Id of a dataset it never saw; the same id as `dataset` takes that dataset's "
        "own holdout split. Without one nothing approximate can be judged.",
    )
    recipe: Recipe | None = Field(
        None, description="How it was trained. Without one it can't be retrained."
    )
    format: formats.Kind | None = Field(
        None,
        description="What the file is; found out if left out. `pytorch` is what `torch.save` "
        "writes of a state dict.",
    )
    importance: FileSource | None = Field(
        None, description="Beside `source`: what the part `importance` would hold."
    )
    metadata: Metadata = Field(default_factory=dict)

    @classmethod
    def source_fields(cls) -> tuple[str, ...]:
        """Return the fields that may name a source; the file itself comes first."""
        return ("source", IMPORTANCE)


class ReferenceBank(Shape):
    """Reference models that attacks on single records compare with."""

    models: int = Field(description="How many were trained.")


class Model(Shape):
    """A named thing with versions."""

    object: Literal["model"] = "model"
    id: str
    name: str
    status: str = Field(description="`active` or `deleted`.")
    architecture: dict[str, Any]
    preprocessing: dict[str, Any]
    recipe: dict[str, Any] | None
    dataset: str | None = Field(description="Null if its training data stays elsewhere.")
    holdout: str | None
    latest_version: versions.Version = Field(description="`validating` until it is prepared.")
    reference_bank: ReferenceBank | None = Field(
        description="None if none was trained, or since the model forgot something."
    )
    metadata: dict[str, str]
    created_at: datetime
    deleted_at: datetime | None
    links: Links


@router.post(
    "/models",
    status_code=201,
    operation_id="create_model",
    response_model=Model,
    responses=problems(BadRequest, NotFound, Conflict, Gone, TooLarge, Unsupported, Unacceptable),
    openapi_extra=uploads_of(
        "ModelCreate",
        HEADER,
        examples.MODEL,
        {IMPORTANCE: ABOUT_IMPORTANCE},
        sourced=examples.SOURCED_MODEL,
    ),
)
async def create_model(
    caller: Annotated[Caller, requires("models:write")],
    once: OptionalOnce,
    http_request: Request,
) -> Response:
    """Upload a checkpoint as safetensors, and register it as version 1 of a new model.

    Names, shapes and types of the tensors are compared with the architecture before the answer.
    What `torch.save` wrote of a state dict (`.pt`, `.pth`, `.bin`) is taken too: it is quarantined
    and converted once, in a sandbox, and the version is `rejected` with a code if it holds anything
    but tensors and plain values. Whole modules, TorchScript, `.pt2` and `torch.package` are not
    taken.
    Send `multipart/form-data` with the parts `file` and `metadata` (JSON), or the raw bytes with
    the metadata as base64 in the header `X-Model-Metadata`, which is faster; or JSON alone, with
    the `source` of the file, or of all files of a sharded checkpoint. Baseline findings are
    measured in the background: read the model until its latest version is `ready`.

    Exactly one of the metadata's `dataset` and the part `importance` is needed, else the answer is
    `dataset_missing` or `importance_redundant`; a raw body cannot carry the part. Importance is
    checked in the background; one that was made for other weights, or holds what cannot be true,
    rejects the version with `importance_mismatch` or `importance_invalid`.
    """

    def check(wanted: ModelCreate, upload: Upload) -> Register:
        kind = fit.kind(upload.path, wanted.format or upload.kind)
        network = fit.check(upload.path, wanted.architecture)
        return lambda session, blob: _create(session, caller, wanted, network, upload, blob, kind)

    return await create(
        http_request,
        caller,
        once,
        shape=ModelCreate,
        header=HEADER,
        limit=settings().max_model_bytes,
        check=check,
        attachment=IMPORTANCE,
    )


@router.get(
    "/models",
    operation_id="list_models",
    response_model=Page[Model],
    responses=problems(BadRequest),
)
def list_models(
    caller: Annotated[Caller, requires("models:read")],
    paging: Pages,
    session: ReadSession,
    http_request: Request,
    http_response: Response,
    status: Annotated[
        list[ModelStatus] | None, Query(description="Repeatable; `active` by default.")
    ] = None,
) -> Page[Model]:
    """List models, newest first."""
    chosen = select(tables.Model).where(tables.Model.status.in_(status or ["active"]))
    return page_of(
        http_request, http_response, session, caller, chosen, paging, partial(shapes, session)
    )


@router.get(
    "/models/{model_id}",
    operation_id="get_model",
    response_model=Model,
    responses={**problems(NotFound), **NOT_MODIFIED},
)
async def get_model(
    caller: Annotated[Caller, requires("models:read")],
    model_id: ModelId,
    http_request: Request,
    wait: Wait,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Read one model; with `Prefer: wait=30` the answer waits until its version is checked."""

    def read() -> Model:
        with reading() as session:
            return shape(session, models.get(session, caller.tenant_id, model_id))

    def done(found: Model) -> bool:
        latest = found.latest_version
        is_checked = latest.status != "validating" or latest.rejection is not None
        return is_checked or found.status == "deleted"

    found = await settled(http_request, wait, read, done)
    again = None if done(found) else retry_after(None)
    return conditional(found, if_none_match, wait=wait, retry_after=again)


@router.delete(
    "/models/{model_id}",
    status_code=204,
    operation_id="delete_model",
    responses=problems(NotFound, Conflict),
)
def delete_model(
    caller: Annotated[Caller, requires("models:write")],
    model_id: ModelId,
) -> None:
    """Erase a model: its weights go, its queued work is cancelled, its history stays."""
    with writing() as session:
        models.delete(session, caller.tenant_id, model_id)


def shape(session: Session, row: tables.Model) -> Model:
    """Return the shape of a model row."""
    return shapes(session, [row])[0]


def shapes(session: Session, rows: Sequence[tables.Model]) -> list[Model]:
    """Return the shapes of model rows, each with its latest version."""
    latest = _latest(session, rows)
    return [
        Model(
            id=row.id,
            name=row.name,
            status=row.status,
            architecture=row.architecture,
            preprocessing=row.preprocessing,
            recipe=row.recipe,
            dataset=row.dataset_id,
            holdout=row.holdout_dataset_id,
            latest_version=latest[row.id],
            reference_bank=None if row.bank_models is None else {"models": row.bank_models},
            metadata=row.meta,
            created_at=row.created_at,
            deleted_at=row.deleted_at,
            links={
                "self": f"/models/{row.id}",
                "versions": f"/models/{row.id}/versions",
                **({"dataset": f"/datasets/{row.dataset_id}"} if row.dataset_id else {}),
            },
        )
        for row in rows
    ]


def _latest(session: Session, rows: Sequence[tables.Model]) -> dict[str, versions.Version]:
    if not rows:
        return {}
    # The one in force is always the last of its chain.
    chosen = select(tables.Version).where(
        tables.Version.tenant_id == rows[0].tenant_id,
        tables.Version.id.in_([row.current_version_id for row in rows]),
    )
    found = session.scalars(chosen).all()
    return {version.model: version for version in versions.shapes(found)}


def _create(
    session: Session,
    caller: Caller,
    wanted: ModelCreate,
    network: fit.Network,
    upload: Upload,
    blob: str,
    kind: formats.Kind,
) -> Answer:
    row, _, _ = models.create(
        session,
        caller.tenant_id,
        name=wanted.name,
        architecture=network.architecture,
        has_batchnorm=network.has_batchnorm,
        preprocessing=wanted.preprocessing.model_dump(mode="json"),
        recipe=None if wanted.recipe is None else wanted.recipe.model_dump(mode="json"),
        dataset_id=wanted.dataset,
        holdout_dataset_id=wanted.holdout,
        digest=upload.digest,
        size_bytes=upload.size,
        num_parameters=network.num_parameters,
        blob=blob,
        meta=wanted.metadata,
        importance_blob=None if upload.attached is None else attached_key(blob, upload.attached),
        upload_format=kind,
    )
    return Answer(201, shape(session, row), {"Location": f"/models/{row.id}"})
