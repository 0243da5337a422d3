"""The child that does the work (``python -m worker.runner``): no credentials, one order, then exit.

It imports torch and core, writes ``{"event":"ready"}`` and reads one line of JSON from its input::

    {"kind": "unlearn", "threads": 1, "limits": {...}, "arguments": {"out": "/path", ...}}

and writes progress, then ``done`` or ``failed``, as JSON lines on its real standard output, while
whatever prints goes to standard error. The end of its input means that the supervisor died: the
runner exits at once, whatever it is doing.
"""

from __future__ import annotations

import json
import math
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from core.errors import CoreError
from worker import confine
from worker.orders import PATHS

Work = Callable[..., dict[str, Any]]

REPORT_SECONDS = 0.25
"""Progress is written at most this often, except where phase or rung change."""

_MAX_DETAIL = 900


def main(load: Callable[[], Mapping[str, Work]] | None = None) -> None:
    """Serve one order and leave the process; never returns.

    Args:
        load: imports the work and returns it by kind; core's own when left out.
    """
    descriptor, walls = confine.enter(int(sys.argv[1]))
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
        confine.limit(**order.get("limits", {"address_space": None, "cpu_seconds": None}))
        result = works[order["kind"]](**_arguments(order["arguments"]), report=channel.report)
        json.dumps(result, allow_nan=False)
    except CoreError as error:
        return _failed(error.code, str(error))
    except Exception as error:  # noqa: BLE001  # the edge of the process: said, never hidden
        traceback.print_exc()
        if _is_memory(error):
            return _failed("out_of_memory", "the work needs more memory than there is")
        return _failed("internal", "an error inside the runner; its log has the details")
    return {"event": "done", "result": result}


def _failed(code: str, detail: str) -> dict[str, Any]:
    return {"event": "failed", "code": code, "detail": detail[:_MAX_DETAIL], "retryable": False}


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
    text = str(error)  # torch has no exception type of its own for a failed allocation on the CPU
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in text


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
