"""Run every benchmark in order: ``python -m benchmarks [--short] [--data FOLDER]``.

What others read comes first: ``oracles`` before ``gates``, ``surgery`` before ``papers``. The
last ones take hours, though most skip what is there, or want a machine of their own; ``--short``
leaves them out.
"""

from __future__ import annotations

import subprocess
import sys

SHORT = (
    "linear_regression",
    "importance",
    "influence_memory",
    "surgery",
    "dampening",
    "audits",
    "first_backward",
    "service",
    "uploads",
    "headers",
    "queued",
)
LONG = ("memory", "real_cifar", "sentinels", "oracles", "gates", "papers")


def main() -> None:
    """Run them one after the other, and name those that failed at the end."""
    options = [option for option in sys.argv[1:] if option != "--short"]
    scripts = SHORT if "--short" in sys.argv else SHORT + LONG
    failed = []
    for script in scripts:
        print(f"== {script}", flush=True)
        command = [sys.executable, "-m", f"benchmarks.{script}", *options]
        if subprocess.run(command, check=False).returncode:
            failed.append(script)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
