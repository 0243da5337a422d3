"""Files on their way between blobs and a runner.

The runner has parsed hostile files, so what it leaves behind is taken only if it is a plain file.
"""

from __future__ import annotations

import errno
import shutil
import stat
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from app.store.blobs import blobs, digest
from app.store.jobs import Claim
from worker.orders import PATHS
from worker.supervisor import RunnerDied

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
"""What the operating system says of a disk, or of our share of it, that is full."""

Adopt = Callable[[Claim, Path], str]
"""Moves a file to the blobs, as ``adopt`` does; ``adopt`` with more patience, perhaps."""


class Wanted(str):
    """Key of a blob in an order; the runner is told the path of a plain file instead."""

    __slots__ = ()


def wanted(blob: str | None) -> Wanted | None:
    """Put a blob into an order."""
    return None if blob is None else Wanted(blob)


def fetch(order: dict[str, Any], inbox: Path) -> dict[str, Any]:
    """Return an order with paths of local files in place of wanted blobs.

    Args:
        order: plain values, and wanted blobs alone or in lists.
        inbox: folder for copies, where the store has no files of its own.

    Raises:
        BlobMissing: if a blob is missing.
        BlobDamaged: if one is not what was stored; each is read once to find that out.
    """
    inbox.mkdir(mode=0o700, exist_ok=True)
    fetch_once = cache(lambda key: str(blobs().fetch(key, inbox)))

    def local(value: Any) -> Any:
        if isinstance(value, Wanted):
            return fetch_once(str(value))
        return [local(each) for each in value] if isinstance(value, list) else value

    return {name: local(value) for name, value in order.items()}


def lend(order: dict[str, Any], inbox: Path) -> dict[str, Any]:
    """Put the files that an order names where its runner may read them, and nothing else.

    A link costs nothing; where files lie on another disk they are copied. One file that is named
    twice stays one: a holdout that is the dataset is told by its path.

    Raises:
        RunnerDied: if a file is not there; it may be, for the next attempt.
    """
    lent: dict[str, str] = {}

    def place(source: str) -> str:
        if source not in lent:
            lent[source] = _link(source, inbox / str(len(lent)))
        return lent[source]

    arguments = dict(order["arguments"])
    for name in (set(PATHS) - {"out"}) & arguments.keys():
        named = arguments[name]
        if isinstance(named, list):
            arguments[name] = [place(each) for each in named]
        elif named is not None:
            arguments[name] = place(named)
    lending = {**order, "arguments": arguments}
    if order.get("checkpoints") and order["checkpoints"]["found"] is not None:
        lending["checkpoints"] = {
            **order["checkpoints"],
            "found": place(order["checkpoints"]["found"]),
        }
    return lending


def _link(source: str, target: Path) -> str:
    try:
        target.hardlink_to(source)
    except FileNotFoundError:
        raise RunnerDied("a file of the order is not in the storage") from None
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK):
            raise
        shutil.copyfile(source, target)
    return str(target)


def adopt(claim: Claim, file: Path) -> str:
    """Move a file under a key that carries its SHA-256 and the attempt's epoch.

    No other attempt writes there.
    """
    name = f"{digest(plain(file))}-{file.name}"
    key = f"{claim.job.tenant_id}/jobs/{claim.job.id}/e{claim.epoch}/{name}"
    blobs().adopt(file, key)
    return key


def plain(file: Path) -> Path:
    """Return the path of a file that is nothing but a file: a link would lead out of scratch."""
    try:
        found = file.lstat()
    except FileNotFoundError:
        raise RunnerDied(f"runner did not write {file.name}") from None
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        raise RunnerDied(f"runner left something else as {file.name}")
    return file


def check_digest(file: Path, announced: str | None) -> int:
    """Return the size of a file whose digest is the announced one.

    Raises:
        RunnerDied: if it is not.
    """
    if digest(plain(file)) != announced:
        raise RunnerDied("runner announced another digest than its file has")
    return file.stat().st_size
