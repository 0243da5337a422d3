"""How well runners are walled in: measured, compared with what the operator wants, told.

L0: a process of its own with an empty environment. L1: also no network, no file outside its
scratch, no signal to others, no rights to gain, each tried and refused. L2: L1 in a container
without root, capabilities, or a root file system that can be written to.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Literal

from app.settings import accelerator_environment
from worker import confine

Level = Literal["L0", "L1", "L2"]

L1_WALLS = frozenset({"privileges", "network", "files", "signals"})
_SECONDS = 60.0
_LOOPBACK = "lo" if sys.platform == "linux" else "lo0"


def level(walls: Collection[str]) -> Level:
    """Return the level that these walls amount to.

    >>> level(["privileges", "network", "files"])
    'L0'
    """
    if not set(walls) >= L1_WALLS:
        return "L0"
    return "L2" if "container" in walls else "L1"


def command(module: str, *, together: bool = False) -> list[str]:
    """Command line of a child that confines itself; it may also read the accelerator's libraries.

    Args:
        module: its first act is ``worker.confine.enter``.
        together: whether processes that it starts should be able to talk to each other.
    """
    libraries = accelerator_environment().get("LD_LIBRARY_PATH", "")
    return [
        *(sys.executable, "-P", "-s", "-m", module, str(os.getpid())),
        *([confine.TOGETHER] if together else []),
        *(path for path in libraries.split(os.pathsep) if path),
    ]


def environment(home: Path) -> dict[str, str]:
    """Everything such a child gets to know: no secret, no address, no setting of ours."""
    return {
        "PATH": os.defpath,
        "HOME": str(home),
        "TMPDIR": str(home),
        "LC_ALL": "C.UTF-8",
        "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
        "PYTHONDONTWRITEBYTECODE": "1",
        # Memory that was freed in pieces serves larger ones again.
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
        # Processes that train together talk within this machine, whatever else it is part of.
        **dict.fromkeys(("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), _LOOPBACK),
        **accelerator_environment(),
    }


def measure(scratch: Path, *, together: bool = False) -> Level:
    """Start a child, let it try its walls, and return the level that holds.

    Args:
        scratch: an existing folder, where runners will work, too.
        together: as for ``command``.
    """
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        home = Path(folder, "home")
        home.mkdir()
        tried = subprocess.run(  # noqa: S603  # our own interpreter and module
            command("worker.confine", together=together),
            cwd=home,
            env=environment(home),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            check=True,
            timeout=_SECONDS,
        )
    return level(json.loads(tried.stdout))


def require(scratch: Path, minimum: Level, *, together: bool = False) -> Level:
    """Return the level that holds; end this process if it is below the minimum."""
    found = measure(scratch, together=together)
    if found < minimum:
        sys.exit(
            f"runners are walled in at level {found}, and LETHE_SANDBOX_MINIMUM asks for "
            f"{minimum}; see docs/deployment.md"
        )
    return found
