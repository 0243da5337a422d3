"""Where tensors live, and in which precision they are multiplied.

``python -m core.device NAME`` prints the bytes of memory of an accelerator, 0 for the CPU.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from .errors import InvalidInput

Precision = Literal["fp32", "bf16"]


def choose(name: str = "auto") -> torch.device:
    """Return the device called ``name``: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        InvalidInput: ``device_unavailable`` if this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if name == "cpu":
        return torch.device("cpu")
    if kind != "cuda" or (index and not index.isdecimal()):
        raise InvalidInput("device_unavailable", "the device must be auto, cpu, cuda or cuda:N")
    if int(index or 0) >= torch.cuda.device_count():
        raise InvalidInput("device_unavailable", f"this machine has no device {name}")
    return torch.device(name)


def memory(device: torch.device) -> int:
    """Return the bytes of memory of an accelerator; 0 for the CPU, which shares the machine's."""
    return 0 if device.type == "cpu" else int(torch.cuda.mem_get_info(device)[1])


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Context in which matrix products run in ``precision``; does nothing for ``fp32``."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


@contextmanager
def full_precision() -> Iterator[None]:
    """Context of audits: float32 products in float32, no TF32, no autocast."""
    matmul = torch.get_float32_matmul_precision()
    convolution = torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = convolution


if __name__ == "__main__":
    sys.stdout.write(f"{memory(choose(sys.argv[1]))}\n")
