"""What the child does first: give up what it does not need, and tie its life to its parent's.

The child does this itself, before it imports anything large and before it has threads, because code
between fork and exec (``preexec_fn``) is not safe in a process with threads. Afterwards it tries
what it should not be able to do, so that what is reported is what was seen to hold.

``python -m worker.confine PARENT`` prints that and ends.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from worker import walls

PARENT_DIED = 70
"""Exit status of a child whose parent is gone (``EX_SOFTWARE``)."""

MAX_FILES = 4096
MAX_PROCESSES = 4096
"""Of the user within the child's own namespace; counts threads."""

_PR_SET_PDEATHSIG = 1
_CODE_ROOT = Path(__file__).resolve().parent.parent
_SYSTEM = ("usr", "lib", "lib32", "lib64", "bin", "sys", "nix/store")
_ETC = (
    *("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "localtime"),
    *("passwd", "group", "nsswitch.conf", "os-release", "nvidia"),
)
_PROC = ("self", "sys", "driver", "cpuinfo", "meminfo", "stat", "filesystems", "version", "devices")
_DEVICES = ("null", "zero", "full", "random", "urandom", "nvidia*", "dxg", "kfd", "dri")


def enter(parent: int) -> tuple[int, list[str]]:
    """Confine this process and take its standard output away from stray prints.

    Args:
        parent: process id of the supervisor; if it is not the parent any more, exit at once.

    Returns:
        A file descriptor of the real standard output, descriptor 1 now goes to standard error; and
        the walls that hold: ``privileges``, ``network``, ``files``, ``signals``, ``container``.
    """
    os.umask(0o077)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _lower(resource.RLIMIT_NOFILE, MAX_FILES)
    held: list[str] = []
    if sys.platform == "linux":
        in_container = _is_hardened_container()
        _build()
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        held = [*_holding(parent), *(["container"] if in_container else [])]
    if os.getppid() != parent:
        os._exit(PARENT_DIED)
    channel = os.dup(1)
    os.dup2(2, 1)
    return channel, held


def limit(address_space: int | None, cpu_seconds: float | None) -> None:
    """Bound what is still to come.

    Args:
        address_space: bytes of memory beyond what is mapped now.
        cpu_seconds: of all threads together.
    """
    if address_space is not None and sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _lower(resource.RLIMIT_AS, pages * resource.getpagesize() + address_space)
    if cpu_seconds is not None:
        _lower(resource.RLIMIT_CPU, int(cpu_seconds) + 1)


def _build() -> None:
    """Build every wall that this kernel lets us build."""
    walls.no_new_privileges()
    if walls.own_namespaces():
        _lower(resource.RLIMIT_NPROC, MAX_PROCESSES)
    devices = [path for name in _DEVICES for path in Path("/dev").glob(name)]
    with suppress(OSError):
        walls.no_capabilities()
    with suppress(OSError):
        walls.landlock(read=_readable(), write=[Path.cwd()], devices=devices)
    with suppress(OSError):
        walls.seccomp(unix_sockets=Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists())


def _readable() -> list[Path]:
    """The system, this interpreter with its packages, our code, and what was lent to us."""
    here = Path.cwd()
    system = [Path("/", name) for name in _SYSTEM]
    system += [Path("/etc", name) for name in _ETC] + [Path("/proc", name) for name in _PROC]
    python = {sys.prefix, sys.base_prefix, sys.exec_prefix, *sys.path}
    python -= {str(_CODE_ROOT), str(here), ""}
    main = sys.modules["__main__"].__spec__
    names = {"core", "worker"} | ({main.name.partition(".")[0]} if main is not None else set())
    code = [_CODE_ROOT / name for name in names]
    lent = [here.with_name(f"{here.name}.in"), *map(Path, sys.argv[2:])]
    return [*system, *map(Path, python), *code, *lent]


def _holding(parent: int) -> list[str]:
    """Try what should fail now, and return what did."""
    trials: dict[str, Callable[[], object]] = {
        "network": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM).close(),
        "files": lambda: _touch(Path.cwd().with_name(f".{os.getpid()}")),
        "signals": lambda: os.kill(parent, 0),
    }
    held = []
    for name, trial in trials.items():
        try:
            trial()
        except PermissionError:
            held.append(name)
    try:
        Path(f"/proc/{parent}/environ").read_bytes()
        held.remove("files")
    except (PermissionError, ValueError):
        pass  # as it should be, or the wall is off the list already
    status = _status()
    if status.get("NoNewPrivs") == "1" and int(status.get("CapEff", "1"), 16) == 0:
        held.append("privileges")
    return held


def _touch(path: Path) -> None:
    path.touch(exist_ok=False)
    path.unlink()


def _is_hardened_container() -> bool:
    """Whether the process began without a root user, capabilities, or a root it can write to."""
    status = _status()
    without = int(status.get("CapPrm", "1"), 16) | int(status.get("CapBnd", "1"), 16) == 0
    is_read_only = os.statvfs("/").f_flag & os.ST_RDONLY != 0
    return os.geteuid() != 0 and without and is_read_only


def _status() -> dict[str, str]:
    lines = Path("/proc/self/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _lower(kind: int, value: int) -> None:
    """Lower a limit, soft and hard; one that is lower already stays."""
    _, hard = resource.getrlimit(kind)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


if __name__ == "__main__":
    _channel, _held = enter(int(sys.argv[1]))
    os.write(_channel, json.dumps(_held).encode())
