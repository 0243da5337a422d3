"""A runner whose work misbehaves on request: ``python -m tests.worker.stand_in``."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from core.errors import Interrupted, InvalidInput
from worker import runner


def tell(*, out: Path, report: Any) -> dict[str, Any]:
    """Say what the child can see of the world."""
    status = Path("/proc/self/status").read_text()
    return {
        "environment": dict(os.environ),
        "cwd": str(Path.cwd()),
        "group": os.getpgid(0),
        "no_new_privs": "NoNewPrivs:\t1" in status,
        "umask": status.split("Umask:\t")[1].split()[0],
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
    }


def shout(*, out: Path, report: Any) -> dict[str, Any]:
    """Print to standard output in every way there is."""
    print('{"event":"failed","code":"forged","detail":"","retryable":true}', flush=True)
    os.write(1, b'{"event":"done","result":{"forged":true}}\n')
    subprocess.run(["echo", '{"event":"done","result":{"forged":true}}'], check=True)
    return {"forged": False}


def steps(*, out: Path, report: Any, count: int) -> dict[str, Any]:
    """Report often."""
    for i in range(count):
        report("unlearning", i / count, None, None, {"loss": float("nan")})
    report("auditing", 1.0, 0.0, {"index": 0, "of": 1, "method": "ssd"}, {"loss": 0.5})
    return {}


def refuse(*, out: Path, report: Any) -> dict[str, Any]:
    raise InvalidInput("model_non_finite", "a tensor is not finite")


def bug(*, out: Path, report: Any) -> dict[str, Any]:
    raise KeyError("someone@example.org")


def starve(*, out: Path, report: Any) -> dict[str, Any]:
    raise MemoryError


def overdraw(*, out: Path, report: Any) -> dict[str, Any]:
    raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))


def crash(*, out: Path, report: Any) -> dict[str, Any]:
    print("last words", file=sys.stderr, flush=True)
    os.kill(os.getpid(), 9)
    raise AssertionError


def hang(*, out: Path, report: Any) -> dict[str, Any]:
    """Say one thing, start a child of its own, and never end."""
    child = subprocess.Popen(["sleep", "600"])
    report("unlearning", 0.1, None, None, {"child": float(child.pid)})
    time.sleep(600)
    return {}


def babble(*, out: Path, report: Any) -> dict[str, Any]:
    """Write something that is no event to the real channel."""
    os.write(
        max(int(fd.name) for fd in Path("/proc/self/fd").iterdir() if _is_channel(fd)), b"hello\n"
    )
    time.sleep(600)
    return {}


def escape(*, out: Path, report: Any, elsewhere: str, port: int) -> dict[str, Any]:
    """Try what a runner must not be able to do; return how each attempt ended."""
    parent, folder = os.getppid(), Path(elsewhere)
    lent = Path.cwd().with_name(f"{Path.cwd().name}.in")
    libc = ctypes.CDLL(None, use_errno=True)

    def call(name: str, *arguments: int) -> None:
        if getattr(libc, name)(*arguments) == -1:
            raise OSError(ctypes.get_errno(), name)

    def child() -> None:
        code = f"import os; os.kill({parent}, 0)"
        subprocess.run([sys.executable, "-S", "-c", code], check=True, stderr=subprocess.DEVNULL)

    def unix() -> None:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(folder / "socket"))

    attempts = {
        "tcp": lambda: socket.create_connection(("127.0.0.1", port), 5).close(),
        "udp": lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close(),
        "packets": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close(),
        "netlink": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close(),
        "unix": unix,
        "write elsewhere": lambda: (folder / "new").write_text("x"),
        "change elsewhere": lambda: (folder / "secret").write_text("x"),
        "remove elsewhere": lambda: (folder / "secret").unlink(),
        "read elsewhere": lambda: (folder / "secret").read_text(),
        "list elsewhere": lambda: list(folder.iterdir()),
        "link elsewhere": lambda: (out / "link").hardlink_to(folder / "secret"),
        "write what was lent": lambda: (lent / "source").write_text("x"),
        "lock what was lent": lambda: (lent / "source").chmod(0),
        "date what was lent": lambda: os.utime(lent / "source", (0, 0)),
        "give away what was lent": lambda: os.chown(lent / "source", os.getuid(), os.getgid()),
        "mark what was lent": lambda: os.setxattr(lent / "source", "user.x", b"x"),
        "cut what was lent": lambda: os.truncate(lent / "source", 0),
        "cut what was lent by reading": lambda: os.open(lent / "source", os.O_TRUNC),
        "lock an open file": lambda: os.fchmod(os.open(lent / "source", os.O_RDONLY), 0),
        "shared memory": lambda: Path("/dev/shm/lethe-test").write_text("x"),
        "our repository": lambda: (Path(__file__).parents[2] / "pyproject.toml").read_text(),
        "passwords": lambda: Path("/etc/shadow").read_bytes(),
        "supervisor's environment": lambda: Path(f"/proc/{parent}/environ").read_bytes(),
        "supervisor's memory": lambda: Path(f"/proc/{parent}/mem").open("rb").close(),
        "supervisor's command": lambda: Path(f"/proc/{parent}/cmdline").read_bytes(),
        "signal": lambda: os.kill(parent, 0),
        "signal by a child": child,
        "signal to all": lambda: os.kill(-1, 0),
        "limit the supervisor": lambda: resource.prlimit(parent, resource.RLIMIT_CPU, (1, 1)),
        "trace": lambda: call("ptrace", 16, parent, 0, 0),
        "session": os.setsid,
        "namespace": lambda: call("unshare", 0x10000000),
        "root": lambda: os.chroot("."),
        "more processes": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (9999, 9999)),
    }
    return {"ends": {name: _how(attempt) for name, attempt in attempts.items()}}


def work(*, out: Path, report: Any, source: Path) -> dict[str, Any]:
    """Do what every job does: read what was lent, write results, start a thread."""
    text = source.read_text()
    thread = threading.Thread(target=(out / "result").write_text, args=(text,))
    thread.start()
    thread.join()
    (out / "result").rename(out / "renamed")
    (Path.cwd() / "scratch").mkdir()
    return {"read": (out / "renamed").read_text()}


def fill(*, out: Path, report: Any) -> dict[str, Any]:
    """Use ever more memory."""
    held = []
    while True:
        held.append(b"x" * (16 << 20))
        report("unlearning", 0.5, None, None, {})


def flood(*, out: Path, report: Any) -> dict[str, Any]:
    """Write a file until there is a reason to stop."""

    def write() -> None:
        with (out / "large").open("wb", buffering=0) as file:
            for _ in range(8):
                file.write(bytes(1 << 19))

    return {"end": _how(write), "size": (out / "large").stat().st_size}


def hoard(*, out: Path, report: Any) -> dict[str, Any]:
    """Write many files, outside of the folder that is for them."""
    for number in range(40):
        (Path.cwd() / f"file-{number}").write_bytes(bytes(1 << 20))
    time.sleep(10.0)
    return {}


def litter(*, out: Path, report: Any) -> dict[str, Any]:
    """Write very many files with nothing in them."""
    for number in range(10_000):
        (out / f"file-{number}").touch()
    time.sleep(10.0)
    return {}


def overflow(*, out: Path, report: Any) -> dict[str, Any]:
    """Write a larger file than may be, and have nobody look after it."""
    (out / "large").write_bytes(bytes(2 << 20))
    return {}


def share(*, out: Path, report: Any) -> dict[str, Any]:
    """Use ever more memory that is shared with others."""
    held = []
    while True:
        held.append(mmap.mmap(-1, 16 << 20))
        held[-1].write(b"x" * (16 << 20))
        report("unlearning", 0.5, None, None, {})


def fork(*, out: Path, report: Any) -> dict[str, Any]:
    """Let a child use the memory."""
    code = "held = b'x' * (300 << 20); import time; time.sleep(600)"
    subprocess.Popen([sys.executable, "-S", "-c", code], start_new_session=False)
    return spin(out=out, report=report)


def spin(*, out: Path, report: Any) -> dict[str, Any]:
    """Work for ever, and say so."""
    while True:
        report("unlearning", 0.5, None, None, {})
        time.sleep(0.05)


def _how(attempt: Any) -> str:
    try:
        attempt()
    except subprocess.CalledProcessError:
        return "failed"
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    except ValueError:
        return "EPERM"  # what resource makes of it
    return "done"


def stop(*, out: Path, report: Any) -> dict[str, Any]:
    """Say that somebody asked it to."""
    raise Interrupted


def not_json(*, out: Path, report: Any) -> dict[str, Any]:
    return {"value": float("inf")}


def _is_channel(descriptor: Path) -> bool:
    return (
        int(descriptor.name) > 2
        and descriptor.is_symlink()
        and str(descriptor.readlink()).startswith("pipe:")
    )


if __name__ == "__main__":
    works = (tell, shout, steps, refuse, bug, starve, crash, hang, babble, not_json)
    works += (escape, work, fill, flood, hoard, litter, overflow, share, fork, spin, stop, overdraw)
    runner.main(lambda: {work.__name__: work for work in works})
