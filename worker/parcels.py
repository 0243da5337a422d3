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

    A link costs nothing; where files lie on another disk they are copied.
    """
    arguments = dict(order["arguments"])
    for name in (set(PATHS) - {"out"}) & arguments.keys():
        lent = arguments[name]
        if isinstance(lent, list):
            arguments[name] = [
                _lend(each, inbox / f"{name}-{number}") for number, each in enumerate(lent)
            ]
        elif lent is not None:
            arguments[name] = _lend(lent, inbox / name)
    return {**order, "arguments": arguments}


def _lend(source: str, target: Path) -> str:
    try:
        target.hardlink_to(source)
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
