"""Reading a hostile file in a process of its own, with what it took of memory and time.

Processes are forked from one that has imported everything and done nothing.
"""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from core.convert import convert
from core.errors import InvalidInput
from core.ingest import ingest
from tests.core.checkpoints import ARCHITECTURE

PATIENCE_SECONDS = 120.0
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([__name__])


@dataclass(frozen=True)
class Outcome:
    """What became of a file."""

    code: str | None
    """Of the refusal; None if there was none."""
    peak_bytes: int
    """The most that the process had resident."""
    processor_seconds: float


def read(kind: str, source: Path, out: Path) -> Outcome:
    """Return what becomes of a file.

    Args:
        kind: ``convert`` or ``ingest``.
        source: the file.
        out: an existing folder.

    Raises:
        RuntimeError: if the process died, or took too long.
    """
    here, there = _context.Pipe(duplex=False)
    process = _context.Process(target=_read, args=(kind, source, out, there))
    process.start()
    there.close()
    try:
        if not here.poll(PATIENCE_SECONDS):
            raise RuntimeError("it took too long")
        found: Outcome = here.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"it died with status {process.exitcode}") from None
    finally:
        process.kill()
        process.join()
    return found


def _read(kind: str, source: Path, out: Path, told: Connection) -> None:
    code, started = None, time.process_time()
    try:
        if kind == "convert":
            convert(out=out, source=source, architecture=ARCHITECTURE, max_parameters=1_000_000)
        else:
            ingest(source=source, out=out, max_records=1000)
    except InvalidInput as error:
        code = error.code
    told.send(Outcome(code, _peak(), time.process_time() - started))


def _peak() -> int:
    # Not ``ru_maxrss``: that is as large as the process was that this one came from.
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM:"))
    return int(line.split()[1]) << 10
