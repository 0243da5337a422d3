"""Files on their way between blobs and a runner.

The runner has parsed hostile files, so what it leaves behind is taken only if it is a plain file.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
import stat
from pathlib import Path
from typing import Any

from app.store.blobs import blobs
from app.store.jobs import Claim
from worker.orders import PATHS
from worker.supervisor import RunnerDied


def path(blob: str | None) -> str | None:
    return None if blob is None else str(blobs().path(blob))


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
    return {**order, "arguments": arguments}


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
    """Move a file under a key that carries the attempt's epoch: no other attempt writes there."""
    key = f"{claim.job.tenant_id}/jobs/{claim.job.id}/e{claim.epoch}/{file.name}"
    blobs().adopt(plain(file), key)
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
    with plain(file).open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    if digest != announced:
        raise RunnerDied("runner announced another digest than its file has")
    return file.stat().st_size
