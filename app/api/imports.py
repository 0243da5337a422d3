"""Files that are named by a URL: from the operator's folder, mirror or buckets, and nowhere else.

No host of a caller's choice is ever asked, and no redirect is followed, so there is no address that
a caller could make this service talk to.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import SplitResult, quote, urlsplit

from ..store.errors import ServiceError, TooLarge, Unacceptable
from ..store.session import settings
from . import connections
from .outbound import Readable, get, missing, unavailable
from .sink import CHUNK_BYTES

SCHEMES = ("file", "hf", "s3")
LONGEST_URL = 2048
_PART = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9_.\-+=@ ]{1,255}")


def bring(url: str, tenant_id: str, target: Path, limit: int) -> str:
    """Copy what ``url`` names to ``target`` in constant memory; return its SHA-256 in hex.

    Raises:
        Unacceptable: ``url_invalid``, ``url_scheme_not_allowed``, ``data_source_not_allowed``,
            ``source_not_found``, ``source_forbidden`` or ``source_redirected``.
        TooLarge: over ``limit`` bytes.
        Unavailable: ``source_unavailable`` if mirror or bucket do not answer as they should.
    """
    found = _parsed(url)
    parts = found.path.split("/")[1:]
    if found.scheme == "file":
        with _in_folder(_import_root() / tenant_id, parts) as source:
            return _copy(source, target, limit)
    if found.scheme == "hf":
        with _in_mirror([found.netloc, *parts]) as source:
            return _copy(source, target, limit)
    with connections.opened(tenant_id, found.netloc, "/".join(parts)) as source:
        return _copy(source, target, limit)


def _parsed(url: str) -> SplitResult:
    """Return the parts of a URL whose form leaves no room for two readings."""
    if len(url) > LONGEST_URL or not re.fullmatch(r"[\x21-\x7e]+", url) or "\\" in url:
        raise _invalid("A URL is at most 2048 printable ASCII characters, without backslashes.")
    try:
        found = urlsplit(url)
    except ValueError:
        raise _invalid("This is not a URL.") from None
    if not found.scheme:
        raise _invalid("A URL begins with its scheme.")
    if found.scheme not in SCHEMES or (found.scheme == "file" and settings().import_root is None):
        raise Unacceptable("url_scheme_not_allowed", "Files are not taken from such a URL.")
    if "?" in url or "#" in url or "@" in found.netloc or ":" in found.netloc:
        raise _invalid("Give no user, port, query or fragment.")
    host = [] if found.scheme == "file" else [found.netloc]
    if found.scheme == "file" and found.netloc:
        raise _invalid("A file is named as file:///path, below the folder of imports.")
    if not all(_PART.fullmatch(part) for part in [*host, *found.path.split("/")[1:]]):
        raise _invalid("A part of the path is empty, leads upwards, or holds special characters.")
    if not found.path:
        raise _invalid("The URL names no file.")
    return found


def _import_root() -> Path:
    root = settings().import_root
    assert root is not None  # its scheme is refused without
    return root


@contextmanager
def _in_folder(root: Path, parts: list[str]) -> Iterator[Readable]:
    """Open a regular file below ``root``, following no link on the way."""
    with ExitStack() as stack:
        try:
            folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(os.close, folder)
            for part in parts[:-1]:
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
                folder = os.open(part, flags, dir_fd=folder)
                stack.callback(os.close, folder)
            # Not blocking: a pipe would wait for its writer.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
            file = stack.enter_context(os.fdopen(os.open(parts[-1], flags, dir_fd=folder), "rb"))
        except OSError:
            raise missing() from None
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise missing()
        yield file


@contextmanager
def _in_mirror(parts: list[str]) -> Iterator[Readable]:
    """Open ``owner/repository[@revision]/path`` of the operator's mirror."""
    mirror = settings().hf_mirror
    if not mirror:
        raise Unacceptable("data_source_not_allowed", "No mirror is configured.")
    if len(parts) < 3:
        raise _invalid("Name hf://owner/repository/path.")
    owner, repository, *path = parts
    repository, has_revision, revision = repository.partition("@")
    halves = [repository, revision] if has_revision else [repository]
    if not all(map(_PART.fullmatch, halves)):
        raise _invalid("Repository or revision is empty, or leads upwards.")
    if not re.match(r"https?://", mirror):
        if revision:
            raise _invalid("This mirror is a folder; it knows no revisions.")
        with _in_folder(Path(mirror), [owner, repository, *path]) as source:
            yield source
        return
    where = [owner, repository, "resolve", revision or "main", *path]
    address = mirror.rstrip("/") + "/" + "/".join(map(quote, where))
    with get(address, _refused_by_mirror) as source:
        yield source


def _refused_by_mirror(status: int, _: bytes) -> ServiceError:
    return missing() if status in (401, 403, 404, 410) else unavailable()


def _copy(source: Readable, target: Path, limit: int) -> str:
    digest = hashlib.sha256()
    size = 0
    with target.open("xb") as file:
        while chunk := source.read(CHUNK_BYTES):
            size += len(chunk)
            if size > limit:
                raise TooLarge(detail=f"The file is limited to {limit} bytes.")
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()


def _invalid(detail: str) -> Unacceptable:
    return Unacceptable("url_invalid", detail)
