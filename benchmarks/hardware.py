"""What a figure was measured on, and where its data lies."""

from __future__ import annotations

import argparse
import os
import platform
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def describe() -> str:
    """One line: processor, cores, bf16 units, memory, torch, accelerator."""
    cpu = "unknown processor"
    flags = ""
    info = Path("/proc/cpuinfo")
    if info.exists():
        text = info.read_text()
        cpu = _field(text, "model name") or cpu
        flags = _field(text, "flags")
    bf16 = [flag for flag in ("avx512_bf16", "amx_bf16") if flag in flags.split()]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{cpu}, {os.cpu_count()} cores, bf16 units: {', '.join(bf16) or 'none'}, "
        f"{memory:.0f} GiB, {gpu}, Python {platform.python_version()}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads"
    )


def _field(text: str, name: str) -> str:
    """Value of the first ``name : value`` line."""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def parser(description: str | None) -> argparse.ArgumentParser:
    """Argument parser with ``--data``, which defaults to a ``shared/data`` beside the checkout."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    return result


def need(data: Path, *names: str) -> list[Path]:
    """Return the data files, or end with a clear message where one is absent."""
    paths = [data / name for name in names]
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        raise SystemExit(f"skipped: no {', '.join(missing)}; name the folder with --data")
    return paths
