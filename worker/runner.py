"""The child that does the work (``python -m worker.runner``): no credentials, one order, then exit.

It imports torch and core, writes ``{"event":"ready"}`` and reads one line of JSON from its input::

    {"kind": "unlearn", "threads": 1, "limits": {...}, "arguments": {"out": "/path", ...},
     "checkpoints": {"seconds": 600, "found": null}}

and writes progress, then ``done`` or ``failed``, as JSON lines on its real standard output, while
whatever prints goes to standard error. SIGTERM ends it, but a training that keeps checkpoints keeps
a last one first. The end of its input means that the supervisor died: the
runner exits at once, whatever it is doing.
"""

from __future__ import annotations

import errno
import importlib
import json
import math
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import CoreError, Interrupted, ProcessDied
from worker import confine
from worker.orders import PATHS

if TYPE_CHECKING:
    from core.checkpoints import Keeper

Work = Callable[..., dict[str, Any]]

REPORT_SECONDS = 0.25
"""Progress is written at most this often, except where phase or rung change."""

_MAX_DETAIL = 900


def main(load: Callable[[], Mapping[str, Work]] | None = None) -> None:
    """Serve one order and leave the process; never returns.

    Args:
        load: imports the work and returns it by kind; core's own when left out.
    """
    descriptor, walls = confine.enter(int(sys.argv[1]), together=confine.TOGETHER in sys.argv)
    channel = Channel(descriptor)
    orders = _listen()
    works = (load or core_work)()
    channel.send({"event": "ready", "walls": walls})
    order = json.loads(orders.get())
    channel.send(_attempt(works, order, channel))
    sys.stderr.flush()
    # Skips interpreter teardown, which takes long with torch loaded and has nothing left to save.
    os._exit(0)


def core_work() -> Mapping[str, Work]:
    """Import torch and core, and return core's work by kind."""
    # Imported here, after the process has confined itself.
    from core.audit_job import audit
    from core.bank_job import bank
    from core.convert import convert
    from core.ingest import ingest
    from core.ladder import unlearn
    from core.oracle_job import oracle
    from core.prepare import prepare

    return {
        "ingest": ingest,
        "convert": convert,
        "prepare": prepare,
        "unlearn": unlearn,
        "audit": audit,
        "oracle": oracle,
        "bank": bank,
    }


class Channel:
    """The real standard output, one JSON object a line."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self._said: tuple[object, object] | None = None
        self._said_at = 0.0

    def send(self, event: Mapping[str, Any]) -> None:
        """Write one event; raise ValueError if it holds a number that JSON does not know."""
        line = memoryview(json.dumps(event, allow_nan=False).encode() + b"\n")
        with self._lock:
            while line:
                line = line[os.write(self._descriptor, line) :]

    def report(
        self,
        phase: str,
        progress: float,
        eta_seconds: float | None,
        rung: dict[str, Any] | None,
        metrics: dict[str, float],
    ) -> None:
        """Report progress (``core.report.Report``), rarely enough to cost nothing."""
        said, now = (phase, rung), time.monotonic()
        if said == self._said and now - self._said_at < REPORT_SECONDS:
            return
        self._said, self._said_at = said, now
        self.send(
            {
                "event": "progress",
                "phase": phase,
                "progress": min(max(progress, 0.0), 1.0),
                "eta_seconds": eta_seconds,
                "rung": rung,
                "metrics": {name: _finite(value) for name, value in metrics.items()},
            }
        )


def _attempt(works: Mapping[str, Work], order: dict[str, Any], channel: Channel) -> dict[str, Any]:
    """Do the work and return the last event."""
    try:
        _set_threads(order["threads"])
        if order["kind"] == "convert":
            # Before the limits: networks load it on demand, and it would use up half of them.
            importlib.import_module("torchvision")
        confine.limit(**order.get("limits", {"address_space": None, "cpu_seconds": None}))
        arguments = _arguments(order["arguments"])
        if order.get("checkpoints") is not None:
            arguments["keeper"] = _keeper(order["checkpoints"], arguments["out"], channel)
        result = works[order["kind"]](**arguments, report=channel.report)
        json.dumps(result, allow_nan=False)
    except Interrupted:
        return {"event": "interrupted"}
    except ProcessDied as error:
        traceback.print_exc()
        return _failed("training_process_died", str(error), retryable=True)
    except CoreError as error:
        return _failed(error.code, str(error))
    except Exception as error:  # noqa: BLE001  # the edge of the process: said, never hidden
        traceback.print_exc()
        return _failed(*_cause(error))
    return {"event": "done", "result": result}


def _cause(error: Exception) -> tuple[str, str]:
    """Return code and detail of an error that nobody raised on purpose."""
    if type(error).__name__ == "OutOfMemoryError":
        return "gpu_out_of_memory", "the accelerator has too little memory for a batch"
    if _says(error, errno.ENOSPC) or _says(error, errno.EDQUOT):
        return "storage_full", "the disk has no room for what the work writes"
    if _says(error, errno.EFBIG):
        return "output_too_large", "the work writes a larger file than it may"
    if _is_memory(error):
        return "out_of_memory", "the work needs more memory than there is"
    return "internal", "an error inside the runner; its log has the details"


def _keeper(options: dict[str, Any], out: Path, channel: Channel) -> Keeper:
    """Return what keeps the state of trainings, and let SIGTERM end them through it."""
    # Imported here, after the process has confined itself; loaded long ago by then.
    from core.checkpoints import Keeper

    found = options["found"]
    keeper = Keeper(
        out,
        seconds=options["seconds"],
        found=None if found is None else Path(found),
        announce=lambda name, digest: channel.send(
            {"event": "checkpoint", "file": name, "digest": digest}
        ),
        ignored=lambda reason: channel.send({"event": "checkpoint_ignored", "reason": reason}),
    )

    def end(number: int, _: object) -> None:
        if not keeper.is_training:
            os._exit(128 + number)
        keeper.interrupt()

    signal.signal(signal.SIGTERM, end)
    return keeper


def _failed(code: str, detail: str, *, retryable: bool = False) -> dict[str, Any]:
    said = {"code": code, "detail": detail[:_MAX_DETAIL], "retryable": retryable}
    return {"event": "failed", **said}


def _arguments(raw: dict[str, Any]) -> dict[str, Any]:
    return {name: _path(value) if name in PATHS else value for name, value in raw.items()}


def _path(value: str | list[str] | None) -> Path | list[Path] | None:
    if isinstance(value, list):
        return [Path(each) for each in value]
    return None if value is None else Path(value)


def _set_threads(threads: int) -> None:
    if threads > 0:
        # Imported here, after the process has confined itself; loaded long ago by then.
        import torch

        torch.set_num_threads(threads)


def _is_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError):
        return True
    # torch has no exception type of its own for a failed allocation on the CPU
    return "can't allocate memory" in str(error)


def _says(error: Exception, number: int) -> bool:
    """Whether an error is this one of the operating system."""
    if isinstance(error, OSError) and error.errno == number:
        return True
    return os.strerror(number) in str(error)  # safetensors and pyarrow pass on the text alone


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _listen() -> queue.SimpleQueue[bytes]:
    """Read the order in a thread that then waits for the end of standard input."""
    orders: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def listen() -> None:
        buffer = bytearray()
        while chunk := os.read(0, 1 << 20):
            buffer += chunk
            if chunk.endswith(b"\n"):
                orders.put(bytes(buffer))
                buffer.clear()
        os._exit(confine.PARENT_DIED)

    threading.Thread(target=listen, name="listen", daemon=True).start()
    return orders


if __name__ == "__main__":
    main()
