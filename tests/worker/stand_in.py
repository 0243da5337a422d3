"""A runner whose work misbehaves on request: ``python -m tests.worker.stand_in``."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from core.errors import InvalidInput
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
    runner.main(lambda: {work.__name__: work for work in works})
