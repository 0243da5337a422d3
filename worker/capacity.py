"""How much memory this worker computes in: that of its accelerator, or of a runner."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import structlog

from app.settings import accelerator_environment
from app.store.session import settings
from worker import limits

_SECONDS = 120.0
_log = structlog.get_logger(__name__)


def memory() -> int | None:
    """Return bytes; None if this worker does not compute, or its accelerator does not answer."""
    if "gpu" not in settings().worker_needs:
        return None
    if settings().device == "cpu" or not _has_accelerator():
        return settings().max_runner_bytes or limits.most_memory()
    # In a process of its own, because the worker itself never loads torch.
    try:
        asked = subprocess.run(  # noqa: S603  # our own interpreter and module
            [sys.executable, "-P", "-m", "core.device", settings().device],
            cwd=Path(__file__).resolve().parent.parent,
            env={
                "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
                **accelerator_environment(),
            },
            stdout=subprocess.PIPE,
            text=True,
            timeout=_SECONDS,
        )
    except subprocess.TimeoutExpired:
        _log.warning("accelerator_memory_unknown", status=None)
        return None
    if asked.returncode or not asked.stdout.strip().isdecimal():
        _log.warning("accelerator_memory_unknown", status=asked.returncode)
        return None
    return int(asked.stdout) or settings().max_runner_bytes or limits.most_memory()


def _has_accelerator() -> bool:
    return Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists()
