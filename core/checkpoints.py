"""Where a long training keeps its state, and from where it goes on after an interruption.

One safetensors file: model, optimiser, random generators and place in the data as tensors, the rest
as JSON in its header. No pickle, written whole or not at all. A training goes on from a checkpoint
only if everything that decides about its result is the same; else it starts from zero.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from .errors import Interrupted

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Interrupted", "Keeper", "State"]

STATE = "state"
"""Key of the header's metadata under which the JSON lies."""


@dataclass(frozen=True)
class State:
    """What one training left behind."""

    tensors: dict[str, Tensor]
    numbers: dict[str, int]


class Keeper:
    """Keeps the state of the training at work every so often, and when asked to end.

    Args:
        folder: the files are written there.
        seconds: between two of them.
        found: what an earlier attempt left, or None; an unreadable one counts as none.
        announce: called with name and sha256 of every finished file.
    """

    def __init__(
        self,
        folder: Path,
        *,
        seconds: float,
        found: Path | None = None,
        announce: Callable[[str, str], None] | None = None,
    ) -> None:
        self._folder = folder
        self._seconds = seconds
        self._found = found
        self._announce = announce
        self._asked = threading.Event()
        self._last = time.monotonic()
        self._count = 0
        self.notes: dict[str, Any] = self._read().get("notes", {})
        """JSON that is kept along: what was done before the training at work."""
        self.is_training = False
        """Whether a training is at work that will see when it is asked to end."""

    def interrupt(self) -> None:
        """Have the training at work keep its state and end; safe in a signal handler."""
        self._asked.set()

    @contextmanager
    def training(self) -> Iterator[None]:
        """Tell that the training in this block looks at ``is_due`` at every step."""
        self.is_training = True
        try:
            yield
        finally:
            self.is_training = False

    @property
    def is_due(self) -> bool:
        """Whether the training at work should keep its state now."""
        return self._asked.is_set() or time.monotonic() - self._last >= self._seconds

    def restore(self, fingerprint: str) -> State | None:
        """Return what an earlier attempt at this very training left; None if nothing did."""
        head = self._read()
        if self._found is None or head.get("fingerprint") != fingerprint:
            return None
        from safetensors.torch import load_file  # not before a training needs it

        return State(load_file(self._found), head["numbers"])

    def save(self, fingerprint: str, state: State) -> None:
        """Keep a state, durably.

        Raises:
            Interrupted: once it is kept, if the process was asked to end.
        """
        from safetensors.torch import save_file  # not before a training needs it

        self._count += 1
        path = self._folder / f"checkpoint-{self._count}.safetensors"
        draft = path.with_suffix(".draft")
        head = {"fingerprint": fingerprint, "numbers": state.numbers, "notes": self.notes}
        save_file(state.tensors, draft, {STATE: json.dumps(head)})
        with draft.open("rb") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        draft.rename(path)
        self._last = time.monotonic()
        if self._announce is not None:
            self._announce(path.name, digest)
        if self._asked.is_set():
            raise Interrupted

    def _read(self) -> dict[str, Any]:
        if self._found is None:
            return {}
        try:
            with safe_open(self._found, "np") as file:
                head: dict[str, Any] = json.loads((file.metadata() or {})[STATE])
                return head
        except (OSError, SafetensorError, KeyError, ValueError):
            self._found = None  # as if there were none: the work starts from zero
            return {}
