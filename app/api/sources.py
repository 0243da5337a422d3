"""Where the bytes of a new model or dataset lie, if they do not come along with the call."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from ..store import partial, uploads
from ..store.blobs import blobs
from ..store.errors import TooLarge, Unacceptable
from ..store.keys import Caller
from ..store.session import reading
from . import imports
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
        description="`file:///path` below the caller's part of the folder of imports, or "
        "`hf://owner/repository[@revision]/path` of the operator's mirror."
    )


Source = Annotated[
    UploadSource | UrlSource,
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
    folder = await asyncio.to_thread(blobs().scratch)
    try:
        found = {
            name: await _fetch(source, caller, limit, folder / name)
            for name, source in wanted.named().items()
        }
        file = found.pop("source")
        attached = next(iter(found.values()), None)
        size = file.path.stat().st_size
        yield Upload(file.path, size, file.digest, b"", attached)
    finally:
        shutil.rmtree(folder)


def uploads_of(wanted: Sourced) -> list[str]:
    """Return the ids of the uploads that are used up."""
    return [each.id for each in wanted.named().values() if isinstance(each, UploadSource)]


async def _fetch(source: Source, caller: Caller, limit: int, path: Path) -> Attachment:
    if isinstance(source, UploadSource):
        return await asyncio.to_thread(_take_upload, source, caller, limit, path)
    digest = await asyncio.to_thread(imports.bring, source.url, caller.tenant_id, path, limit)
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
