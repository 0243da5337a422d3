"""Datasets: registered sets of records, uploaded as parquet."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from ..store import datasets, tables
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
from ..store.status import DatasetStatus
from . import examples
from .creation import Register, create
from .deps import ReadSession, requires, writing
from .idempotency import Answer, OptionalOnce
from .ids import DatasetId
from .listing import Pages, page_of
from .problems import problems
from .schema import uploads_of
from .shapes import Links, Metadata, Name, Page, Rejection, Shape
from .sources import FileSource, Sourced
from .uploads import Upload
from .waiting import NOT_MODIFIED, IfNoneMatch, Wait, conditional, retry_after, settled

router = APIRouter(tags=["datasets"])
HEADER = "X-Dataset-Metadata"
MAGIC = b"PAR1"


class DatasetCreate(Sourced):
    """What comes along with a parquet file, or names where it lies."""

    source: FileSource | None = Field(
        None, description="Instead of a file in the call; then the whole body is this JSON."
    )
    name: Name
    purpose: Literal["train", "forget"] | None = Field(
        None,
        description="`forget` marks records sent only to be forgotten: one request with the "
        "selector `samples` takes them, and they are erased when it is completed or cancelled.",
    )
    class_names: list[Name] | None = Field(
        None, min_length=1, max_length=100_000, description="Name of label 0, 1, 2 ..."
    )
    metadata: Metadata = Field(default_factory=dict)


class Dataset(Shape):
    """A registered set of records."""

    object: Literal["dataset"] = "dataset"
    id: str
    name: str
    purpose: str | None
    status: str = Field(description="`validating`, `ready`, `rejected` or `deleted`.")
    rejection: Rejection
    class_names: list[str] | None
    digest: str = Field(description="`sha256:` and the digest of the file in hex.")
    size_bytes: int
    num_train: int | None = Field(description="Known once it is ready, as the next three.")
    num_holdout: int | None
    num_classes: int | None
    modality: str | None = Field(description="`image` or `features`.")
    metadata: dict[str, str]
    created_at: datetime
    deleted_at: datetime | None
    links: Links


@router.post(
    "/datasets",
    status_code=201,
    operation_id="create_dataset",
    response_model=Dataset,
    responses=problems(BadRequest, NotFound, Conflict, Gone, TooLarge, Unsupported, Unacceptable),
    openapi_extra=uploads_of(
        "DatasetCreate", HEADER, examples.DATASET, sourced=examples.SOURCED_DATASET
    ),
)
async def create_dataset(
    caller: Annotated[Caller, requires("datasets:write")],
    once: OptionalOnce,
    http_request: Request,
) -> Response:
    """Upload a parquet file of records.

    Columns: `id` (unique text), `label` (integer from 0), and `image` (encoded PNG, JPEG or WebP)
    or `features` (list of numbers); optional `subject` (whose record it is; stored as a keyed hash
    only) and `split` (`train`, the default, or `holdout`). Send `multipart/form-data` with the
    parts `file` and `metadata` (JSON), or the raw bytes with the metadata as base64 in the header
    `X-Dataset-Metadata`, which is faster; or JSON alone, with the `source` of the file. The file
    is checked in the background: read the dataset until it is `ready`.
    """

    def check(wanted: DatasetCreate, upload: Upload) -> Register:
        _check_magic(upload.path)
        return lambda session, blob: _create(session, caller, wanted, upload, blob)

    return await create(
        http_request,
        caller,
        once,
        shape=DatasetCreate,
        header=HEADER,
        limit=settings().max_dataset_bytes,
        check=check,
    )


@router.get(
    "/datasets",
    operation_id="list_datasets",
    response_model=Page[Dataset],
    responses=problems(BadRequest),
)
def list_datasets(
    caller: Annotated[Caller, requires("datasets:read")],
    paging: Pages,
    session: ReadSession,
    http_request: Request,
    http_response: Response,
    status: Annotated[
        list[DatasetStatus] | None, Query(description="Repeatable; all but deleted by default.")
    ] = None,
) -> Page[Dataset]:
    """List datasets, newest first."""
    wanted = status or ["validating", "ready", "rejected"]
    chosen = select(tables.Dataset).where(tables.Dataset.status.in_(wanted))
    return page_of(http_request, http_response, session, caller, chosen, paging, shapes)


@router.get(
    "/datasets/{dataset_id}",
    operation_id="get_dataset",
    response_model=Dataset,
    responses={**problems(NotFound), **NOT_MODIFIED},
)
async def get_dataset(
    caller: Annotated[Caller, requires("datasets:read")],
    dataset_id: DatasetId,
    http_request: Request,
    wait: Wait,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Read one dataset; with `Prefer: wait=30` the answer waits until it is checked."""

    def read() -> Dataset:
        with reading() as session:
            return shape(datasets.get(session, caller.tenant_id, dataset_id))

    def done(found: Dataset) -> bool:
        return found.status != "validating" or found.rejection is not None

    found = await settled(http_request, wait, read, done)
    again = None if done(found) else retry_after(None)
    return conditional(found, if_none_match, wait=wait, retry_after=again)


@router.delete(
    "/datasets/{dataset_id}",
    status_code=204,
    operation_id="delete_dataset",
    responses=problems(NotFound, Conflict),
)
def delete_dataset(
    caller: Annotated[Caller, requires("datasets:write")],
    dataset_id: DatasetId,
) -> None:
    """Erase the records of a dataset.

    Refused with `in_use` while a model rests on it, or an open request is to forget it.
    """
    with writing() as session:
        datasets.delete(session, caller.tenant_id, dataset_id)


def shape(row: tables.Dataset) -> Dataset:
    """Return the shape of a dataset row."""
    return Dataset(
        id=row.id,
        name=row.name,
        purpose=row.purpose,
        status=row.status,
        rejection=row.rejection,
        class_names=row.class_names,
        digest=f"sha256:{row.digest.removeprefix('sha256:')}",
        size_bytes=row.size_bytes,
        num_train=row.num_train,
        num_holdout=row.num_holdout,
        num_classes=row.num_classes,
        modality=row.modality,
        metadata=row.meta,
        created_at=row.created_at,
        deleted_at=row.deleted_at,
        links={"self": f"/datasets/{row.id}"},
    )


def shapes(rows: Sequence[tables.Dataset]) -> list[Dataset]:
    """Return the shapes of dataset rows."""
    return [shape(row) for row in rows]


def _create(
    session: Session, caller: Caller, wanted: DatasetCreate, upload: Upload, blob: str
) -> Answer:
    row, _ = datasets.create(
        session,
        caller.tenant_id,
        name=wanted.name,
        purpose=wanted.purpose,
        class_names=wanted.class_names,
        digest=upload.digest,
        size_bytes=upload.size,
        blob=blob,
        meta=wanted.metadata,
    )
    return Answer(201, shape(row), {"Location": f"/datasets/{row.id}"})


def _check_magic(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(4)
        size = path.stat().st_size
        file.seek(max(size - 4, 0))
        tail = file.read(4)
    if size == 0:
        raise Unacceptable("dataset_empty", "The file has no bytes.")
    if head[:3] != MAGIC[:3] and tail[:3] != MAGIC[:3]:
        raise Unsupported(detail="Datasets are parquet; the client converts other formats.")
    if size < 12 or head != MAGIC or tail != MAGIC:
        raise Unacceptable("media_type_mismatch", "The file is not parquet.")
