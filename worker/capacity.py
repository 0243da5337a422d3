"""What this worker computes in: whether its accelerator is there, and how much memory it has."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import structlog

from app.settings import accelerator_environment
from app.store.session import settings
from worker import limits

_SECONDS = 120.0
_AGAIN_SECONDS = 30.0
"""For an accelerator that was there, while the lease of a job runs on."""
_log = structlog.get_logger(__name__)


def memory() -> int | None:
    """Return bytes; None if this worker does not compute, or its accelerator does not answer.

    Raises:
        SystemExit: if the settings name an accelerator, and that is not there or does not answer.
    """
    if "gpu" not in settings().worker_needs:
        return None
    on_host = settings().max_runner_bytes or limits.most_memory()
    if not _is_named() and (settings().device == "cpu" or not _has_accelerator()):
        return on_host
    found = _ask(_SECONDS)
    if found is None and _is_named():
        raise SystemExit(
            f"LETHE_DEVICE names {settings().device}, and this machine has no such device, or it "
            "does not answer"
        )
    return on_host if found == 0 else found


def is_gone() -> bool:
    """Whether the settings name an accelerator that is not there, or does not answer."""
    return _is_named() and _ask(_AGAIN_SECONDS) is None


def _is_named() -> bool:
    return settings().device not in ("auto", "cpu")


def _ask(seconds: float) -> int | None:
    """Return the bytes of the accelerator, 0 if there is none; None without an answer."""
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
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        _log.warning("accelerator_memory_unknown", status=None)
        return None
    if asked.returncode or not asked.stdout.strip().isdecimal():
        _log.warning("accelerator_memory_unknown", status=asked.returncode)
        return None
    return int(asked.stdout)


def _has_accelerator() -> bool:
    return Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists()
