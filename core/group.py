"""Processes that learn from one batch together: each has a share of it, all take the same step.

They meet twice a step: with a word each, so that nobody waits for one that can't go on, then with
their gradients. Words travel by gloo, which notices a process that died; values by NCCL where each
process has an accelerator of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import IntEnum
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import CoreError, Interrupted


class Word(IntEnum):
    """What a process says before a step; of several words the largest counts."""

    GO_ON = 0
    STOP = 1
    MEMORY = 2
    FAILED = 3


class Parted(Exception):
    """Another process does not go on; without a word, if it is gone."""

    def __init__(self, word: Word | None) -> None:
        super().__init__("gone" if word is None else word.name)
        self.word = word


class Group:
    """The processes of one training, as one of them sees them.

    Args:
        folder: private to them; they find each other through a file in it.
        rank: of this process, from 0.
        size: how many there are.
        device: where this one trains.
    """

    def __init__(self, folder: Path, rank: int, size: int, device: torch.device) -> None:
        self.rank, self.size = rank, size
        self._is_parted = False
        dist.init_process_group(
            f"cpu:gloo,cuda:{backend(device)}",
            init_method=(folder / "meeting").as_uri(),
            rank=rank,
            world_size=size,
        )

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Tell the others if the block ends before its time; leave them at its end."""
        try:
            yield
        except Parted:
            raise
        except BaseException as error:
            if not self._is_parted:
                with suppress(Parted):
                    self._meet(_word(error))
            raise
        finally:
            dist.destroy_process_group()

    def average(self, tensors: Sequence[Tensor], weight: int) -> None:
        """Put the mean over all processes in the place of each tensor.

        Args:
            tensors: of the same sizes in each process.
            weight: of this process's values: how many records they are the mean of.

        Raises:
            Parted: if another process does not go on.
        """
        flat = torch.cat([tensor.detach().flatten().float() for tensor in tensors])
        flat = torch.cat([flat, flat.new_ones(1)]).mul_(weight)
        if (word := self._meet(Word.GO_ON)) is not Word.GO_ON:
            self._is_parted = True
            raise Parted(word)
        self._add(flat)
        flat = flat[:-1].div_(flat[-1])
        for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.detach().copy_(mean.view(tensor.shape))

    def _meet(self, word: Word) -> Word:
        told = torch.tensor([int(word)])
        self._add(told, dist.ReduceOp.MAX)
        return Word(int(told))

    def _add(self, values: Tensor, how: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> None:
        try:
            dist.all_reduce(values, how)
        except RuntimeError as error:  # of whatever the backend makes of a broken line
            self._is_parted = True
            raise Parted(None) from error


def backend(device: torch.device) -> str:
    """Name of what carries the values of tensors on ``device``."""
    return "nccl" if device.type == "cuda" else "gloo"


def _word(error: BaseException) -> Word:
    if isinstance(error, CoreError | Interrupted):
        return Word.STOP
    return Word.MEMORY if is_memory(error) else Word.FAILED


def is_memory(error: BaseException) -> bool:
    """Whether this says that there is too little memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # torch has no exception type of its own for a failed allocation on the CPU
    return "can't allocate memory" in str(error)
