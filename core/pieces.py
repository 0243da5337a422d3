"""Do something with a batch, in as few pieces as the memory of the accelerator allows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from . import batchnorm

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


class Sparing:
    """Takes gradients with the model's forward passes in pieces, once the memory did not suffice.

    What the backward pass needs of a piece is computed anew then, so that no more than one piece's
    is held, for the price of a second forward pass. The loss sees whole batches: whatever it does
    with them, the gradients are those of the whole.

    Args:
        model: whose records do not meet while batch norm is on its running statistics.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.pieces = 1

    def run(self, work: Callable[..., Result], *given: object) -> Result:
        """Return what ``work(*given)`` makes; where memory is short it is called again.

        Args:
            work: starts from no gradients, and leaves nothing else behind when it raises.
            given: its arguments.

        Raises:
            torch.OutOfMemoryError: if a sixteenth of a batch is too much, or a whole one where
                batch norm normalises by the batch.
        """
        while True:
            self._model.zero_grad(set_to_none=True)
            try:
                with self.split():
                    return work(*given)
            except torch.OutOfMemoryError:
                if self.pieces >= MOST_PIECES or batchnorm.learns(self._model):
                    raise
            # Here, for what is being handled holds on to the memory of the pass.
            self.pieces *= 2
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()

    @contextmanager
    def split(self) -> Iterator[None]:
        """Have passes in training mode go in as many pieces as were needed so far."""
        if self.pieces == 1:
            yield
            return
        model = self._model
        whole: Callable[[Tensor], Tensor] = model.forward

        def forward(x: Tensor) -> Tensor:
            # Looks in eval mode hold no activations, and may measure batch norm anew.
            if not model.training:
                return whole(x)
            parts = x.tensor_split(min(self.pieces, max(1, len(x))))
            return torch.cat([checkpoint(whole, part, use_reentrant=False) for part in parts])

        model.forward = forward
        try:
            yield
        finally:
            del model.forward
