"""Run the benchmarks one after the other: ``python -m benchmarks [--data FOLDER]``.

``real_cifar``, ``oracles``, ``gates``, ``papers``, ``memory`` and ``load`` take long, or want a
machine of their own, and are run apart.
"""

from __future__ import annotations

import subprocess
import sys

SCRIPTS = (
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

failed = []
for script in SCRIPTS:
    print(f"== {script}", flush=True)
    command = [sys.executable, "-m", f"benchmarks.{script}", *sys.argv[1:]]
    if subprocess.run(command, check=False).returncode:
        failed.append(script)
if failed:
    sys.exit(f"failed: {', '.join(failed)}")
