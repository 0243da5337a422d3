"""What the child does first: give up what it does not need, and tie its life to its parent's.

The child does this itself, before it imports anything large and before it has threads, because code
between fork and exec (``preexec_fn``) is not safe in a process with threads. Afterwards it tries
what it should not be able to do, so that what is reported is what was seen to hold.

``python -m worker.confine PARENT`` prints that and ends.
"""

from __future__ import annotations

import ctypes
import errno
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

TOGETHER = "--together"
"""On the command line of a child: processes that it starts should be able to talk to each other."""

MAX_FILES = 4096
MAX_PROCESSES = 4096
"""Of the user within the child's own namespace; counts threads."""

_PR_SET_PDEATHSIG = 1
_ELSEWHERE = ("192.0.2.1", 9)
"""An address that belongs to nobody (RFC 5737)."""

_CODE_ROOT = Path(__file__).resolve().parent.parent
_SYSTEM = ("usr", "lib", "lib32", "lib64", "bin", "sys", "nix/store")
_ETC = (
    *("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "localtime"),
    *("passwd", "group", "nsswitch.conf", "os-release", "nvidia"),
)
_PROC = ("self", "sys", "driver", "cpuinfo", "meminfo", "stat", "filesystems", "version", "devices")
_DEVICES = ("null", "zero", "full", "random", "urandom", "nvidia*", "dxg", "kfd", "dri")


def enter(parent: int, *, together: bool = False) -> tuple[int, list[str]]:
    """Confine this process and take its standard output away from stray prints.

    Args:
        parent: process id of the supervisor; if it is not the parent any more, exit at once.
        together: leave sockets to the processes that it starts, if it has a network of its own
            where nobody else is to be met. Elsewhere the wall stays, and they can't talk.

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
        talks, keeps_files = _build(together=together)
        if talks:
            _link_code()
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        held = [*_holding(parent, talks=talks), *(["container"] if in_container else [])]
        if not keeps_files and "files" in held:
            held.remove("files")
    if os.getppid() != parent:
        os._exit(PARENT_DIED)
    channel = os.dup(1)
    os.dup2(2, 1)
    return channel, held


def limit(
    address_space: int | None, cpu_seconds: float | None, file_size: int | None = None
) -> None:
    """Bound what is still to come.

    Args:
        address_space: bytes of memory beyond what is mapped now.
        cpu_seconds: of all threads together.
        file_size: bytes of one file.
    """
    if file_size is not None:
        _lower(resource.RLIMIT_FSIZE, file_size)
    if address_space is not None and sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _lower(resource.RLIMIT_AS, pages * resource.getpagesize() + address_space)
    if cpu_seconds is not None:
        _lower(resource.RLIMIT_CPU, int(cpu_seconds) + 1)


def _build(*, together: bool) -> tuple[bool, bool]:
    """Build every wall that this kernel lets us build.

    Returns:
        Whether sockets are left, and whether the wall of files is whole.
    """
    keeps_files = False
    walls.no_new_privileges()
    talks = False
    if walls.own_namespaces():
        _lower(resource.RLIMIT_NPROC, MAX_PROCESSES)
        with suppress(OSError):
            talks = together and walls.loopback()
    devices = [path for name in _DEVICES for path in Path("/dev").glob(name)]
    with suppress(OSError):
        walls.no_capabilities()
    with suppress(OSError):
        keeps_files = walls.landlock(
            read=_readable(), write=[Path.cwd()], devices=devices, loopback=talks
        )
    with suppress(OSError):
        has_cuda = Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists()
        walls.seccomp(unix_sockets=has_cuda, loopback=talks)
    return talks, keeps_files


def _readable() -> list[Path]:
    """The system, this interpreter with its packages, our code, and what was lent to us."""
    here = Path.cwd()
    system = [Path("/", name) for name in _SYSTEM]
    system += [Path("/etc", name) for name in _ETC] + [Path("/proc", name) for name in _PROC]
    python = {sys.prefix, sys.base_prefix, sys.exec_prefix, *sys.path}
    python -= {str(_CODE_ROOT), str(here), ""}
    told = [path for path in sys.argv[2:] if path != TOGETHER]
    lent = [here.with_name(f"{here.name}.in"), *map(Path, told)]
    return [*system, *map(Path, python), *_code(), *lent]


def _code() -> list[Path]:
    """The packages that this process and those that it starts are made of."""
    main = sys.modules["__main__"].__spec__
    names = {"core", "worker"} | ({main.name.partition(".")[0]} if main is not None else set())
    return [_CODE_ROOT / name for name in names]


def _link_code() -> None:
    """Put links to our packages where other processes find them, and have them look there.

    They may read the packages, but not list the folder that these lie in, as imports do.
    """
    folder = Path.cwd() / "code"
    folder.mkdir()
    for package in _code():
        (folder / package.name).symlink_to(package)
    sys.path.insert(0, str(folder))


def _holding(parent: int, *, talks: bool) -> list[str]:
    """Try what should fail now, and return what did."""
    trials: dict[str, Callable[[], object]] = {
        "network": _leave if talks else _make_socket,
        "files": lambda: _touch(Path.cwd().with_name(f".{os.getpid()}")),
        "signals": lambda: os.kill(parent, 0),
    }
    held = [name for name, trial in trials.items() if _is_refused(trial)]
    here = Path.cwd()
    marks: list[Callable[[], object]] = [
        lambda: Path(f"/proc/{parent}/environ").read_bytes(),
        lambda: here.chmod(0o700),
        lambda: os.utime(here),
        lambda: os.truncate(os.devnull, 0),
    ]
    if not all(_is_refused(mark) for mark in marks) and "files" in held:
        held.remove("files")
    status = _status()
    if status.get("NoNewPrivs") == "1" and int(status.get("CapEff", "1"), 16) == 0:
        held.append("privileges")
    return held


def _make_socket() -> None:
    socket.socket(socket.AF_INET, socket.SOCK_STREAM).close()


def _leave() -> None:
    """Connect to another machine, then to a service of this one; raise PermissionError in vain."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(_ELSEWHERE)
        except OSError as error:
            if error.errno != errno.ENETUNREACH:
                return
    # Paths of sockets know no network; only that there are no such sockets keeps them closed.
    socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).close()


def _is_refused(trial: Callable[[], object]) -> bool:
    try:
        trial()
    except PermissionError:
        return True
    return False


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
    _channel, _held = enter(int(sys.argv[1]), together=TOGETHER in sys.argv)
    os.write(_channel, json.dumps(_held).encode())
