"""Typed ids in paths and bodies. A malformed one in a path is answered like an unknown one."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Path
from pydantic import Field

ULID = "[0-9A-HJKMNP-TV-Z]{26}"


def _in_path(prefix: str, what: str) -> Any:
    return Path(pattern=f"^{prefix}_{ULID}$", description=f"Id of the {what}: `{prefix}_...`.")


ModelId = Annotated[str, _in_path("mdl", "model")]
DatasetId = Annotated[str, _in_path("dst", "dataset")]
RequestId = Annotated[str, _in_path("req", "unlearn request")]
JobId = Annotated[str, _in_path("job", "job")]
KeyId = Annotated[str, _in_path("key", "API key")]
UploadId = Annotated[str, _in_path("upl", "upload")]
VersionRef = Annotated[
    str,
    Path(
        pattern=f"^([1-9][0-9]{{0,8}}|ver_{ULID}|@[a-z][a-z0-9_-]{{0,63}})$",
        description="A number, a `ver_...` id, `@serving` (in force) or `@latest`.",
    ),
]
ModelFilter = Annotated[str | None, Field(pattern=f"^mdl_{ULID}$")]
