"""Do something with a batch, in as few pieces as the memory of the accelerator allows."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")

MOST_PIECES = 2**4
"""A batch for which the memory does not suffice is halved at most four times."""


class Pieces:
    """Splits batches for work in which records do not meet; what was too large once stays so."""

    def __init__(self) -> None:
        self.size: int | None = None
        """Records at once; None for whole batches."""
        self.halvings = 0

    def run(self, work: Callable[..., Result], *batch: Tensor) -> list[Result]:
        """Return what ``work`` makes of each piece, in order.

        Args:
            work: called with a piece of each tensor; leaves nothing behind when it raises.
            batch: tensors of the same length.

        Raises:
            torch.OutOfMemoryError: if a single record, or a sixteenth of a batch, is too much.
        """
        found: list[Result] = []
        start, count = 0, len(batch[0])
        while start < count:
            end = count if self.size is None else min(start + self.size, count)
            try:
                found.append(work(*(tensor[start:end] for tensor in batch)))
            except torch.OutOfMemoryError:
                if end - start == 1 or 2**self.halvings >= MOST_PIECES:
                    raise
            else:
                start = end
                continue
            # Here, for what is being handled holds on to the memory of the piece.
            self.size, self.halvings = -(-(end - start) // 2), self.halvings + 1
            if batch[0].is_cuda:
                torch.cuda.empty_cache()
        return found
