"""Where the bytes of a new model or dataset lie, if they do not come along with the call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from core import shards
from core.errors import InvalidInput

from ..store import partial, uploads
from ..store.blobs import blobs
from ..store.errors import TooLarge, Unacceptable
from ..store.homes import Home
from ..store.keys import Caller
from ..store.session import reading
from . import imports
from .lanes import IMPORTS, in_lane
from .shapes import Sha256, Shape
from .uploads import Attachment, Upload


class UploadSource(Shape):
    """A finished upload of `POST /uploads`; it is used up."""

    type: Literal["upload"]
    id: str = Field(description="`upl_...`")


class UrlSource(Shape):
    """A file that the operator of this service has put where it may be read."""

    type: Literal["url"]
    url: str = Field(
        description="`file:///path` below the caller's part of the folder of imports, "
        "`hf://owner/repository[@revision]/path` of the operator's mirror, or "
        "`s3://connection/key` of a bucket that the operator has registered for the caller."
    )


FileSource = Annotated[
    UploadSource | UrlSource,
    Field(discriminator="type", description="Where the bytes lie."),
]


class ShardTotals(Shape):
    """Sums over the files of one model."""

    total_size: int | None = Field(None, ge=0, description="Bytes of all tensors; checked.")
    total_parameters: int | None = Field(None, ge=0, description="Not checked: some are tied.")


class ShardIndex(Shape):
    """What `model.safetensors.index.json` holds."""

    weight_map: dict[str, str] = Field(min_length=1, description="Tensor -> name of its file.")
    metadata: ShardTotals | None = Field(None, description="Sums over all files.")


class ShardsSource(Shape):
    """Several safetensors files that are one model; they are put together into one file."""

    type: Literal["shards"]
    index: ShardIndex
    files: dict[str, FileSource] = Field(
        min_length=1, max_length=256, description="Name in the index -> where that file lies."
    )


Source = Annotated[
    UploadSource | UrlSource | ShardsSource,
    Field(discriminator="type", description="Where the bytes lie."),
]


class Sourced(Shape):
    """What comes along with a file, or names the place where it lies."""

    source: Source | None = Field(
        None, description="Instead of a file in the call; then the whole body is this JSON."
    )
    sha256: Sha256 | None = Field(None, description="Digest of the file; checked if given.")

    def named(self) -> dict[str, Source]:
        """Return the sources that are given, by field."""
        found = {name: getattr(self, name) for name in self.source_fields()}
        return {name: value for name, value in found.items() if value is not None}

    @classmethod
    def source_fields(cls) -> tuple[str, ...]:
        """Return the fields that may name a source; the file itself comes first."""
        return ("source",)


@asynccontextmanager
async def fetched(wanted: Sourced, caller: Caller, limit: int) -> AsyncIterator[Upload]:
    """Bring the bytes to scratch; nothing stays there when the block ends.

    Raises:
        ServiceError: for everything that is wrong with a source.
    """
    if wanted.source is None:
        error = {"pointer": "/source", "message": "missing", "code": "source_missing"}
        raise Unacceptable(
            "source_missing", "Send a file along, or name its source.", errors=[error]
        )
    with await asyncio.to_thread(Home, blobs()) as folder:
        found = {
            name: await _fetch(source, caller, limit, folder / name)
            for name, source in wanted.named().items()
        }
        file = found.pop("source")
        attached = next(iter(found.values()), None)
        size = file.path.stat().st_size
        yield Upload(file.path, size, file.digest, b"", attached)


def uploads_of(wanted: Sourced) -> list[str]:
    """Return the ids of the uploads that are used up."""
    files = [
        file
        for each in wanted.named().values()
        for file in (each.files.values() if isinstance(each, ShardsSource) else [each])
    ]
    return [each.id for each in files if isinstance(each, UploadSource)]


async def _fetch(source: Source, caller: Caller, limit: int, path: Path) -> Attachment:
    if isinstance(source, ShardsSource):
        return await _merged(source, caller, limit, path)
    if isinstance(source, UploadSource):
        return await asyncio.to_thread(_take_upload, source, caller, limit, path)
    digest = await in_lane(IMPORTS, imports.bring, source.url, caller.tenant_id, path, limit)
    return Attachment(path, digest)


async def _merged(source: ShardsSource, caller: Caller, limit: int, path: Path) -> Attachment:
    """Bring all files, which together are as large as one may be, and make one of them."""
    files: dict[str, Path] = {}
    for number, (name, each) in enumerate(source.files.items()):
        left = limit - sum(file.stat().st_size for file in files.values())
        files[name] = path.with_name(f"{path.name}-{number}")
        await _fetch(each, caller, left, files[name])
    index = source.index
    total = None if index.metadata is None else index.metadata.total_size
    try:
        digest = await in_lane(
            IMPORTS, shards.merge, files, index.weight_map, path, total_size=total
        )
    except InvalidInput as error:
        raise Unacceptable(error.code, error.detail) from None
    return Attachment(path, digest)


def _take_upload(source: UploadSource, caller: Caller, limit: int, path: Path) -> Attachment:
    with reading() as session:
        row = uploads.usable(session, caller.tenant_id, source.id)
    if row.size_bytes > limit:
        raise TooLarge(detail=f"The file is limited to {limit} bytes.")
    if row.size_bytes == 0:
        path.touch(mode=0o600)
    else:
        partial.link(row.tenant_id, row.id, path)
    assert row.digest is not None
    return Attachment(path, row.digest)
