"""Where a long training keeps its state, and from where it goes on after an interruption.

One safetensors file: model, optimiser, random generators and place in the data as tensors, the rest
as JSON in its header. No pickle, written whole or not at all. A training goes on from a checkpoint
only if everything that decides about its result is the same; else it starts from zero.

Some work is several trainings in turn: the file also holds what the finished ones left (``once``),
so that none is taken twice, and of which work all that is (``turn_to``).
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safetensors import SafetensorError, safe_open

from .errors import Interrupted

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Ignored", "Interrupted", "Keeper", "State", "once"]

STATE = "state"
"""Key of the header's metadata under which the JSON lies."""

_PART = "part."
"""What names of tensors begin with that a finished part left."""

Tensors = dict[str, "Tensor"]

Ignored = Literal["unreadable", "other_work", "other_training"]
"""Why what an earlier attempt left is not used."""


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
        found: what an earlier attempt left, or None; one that does not fit counts as none.
        announce: called with name and sha256 of every finished file.
        ignored: called once if what was found is not used, with the reason.
    """

    def __init__(
        self,
        folder: Path,
        *,
        seconds: float,
        found: Path | None = None,
        announce: Callable[[str, str], None] | None = None,
        ignored: Callable[[Ignored], None] | None = None,
    ) -> None:
        self._folder = folder
        self._seconds = seconds
        self._found = found
        self._announce = announce
        self._ignored = ignored
        self._asked = threading.Event()
        self._last = time.monotonic()
        self._count = 0
        self._work = ""
        self._parts: dict[str, Tensors] = {}
        self._head = self._read()
        self.notes: dict[str, Any] = self._head.get("notes", {})
        """JSON that is kept along: what was done before the training at work."""
        self.is_training = False
        """Whether a training is at work that will see when it is asked to end."""

    def interrupt(self) -> None:
        """Have the training at work keep its state and end; safe in a signal handler."""
        self._asked.set()

    @contextmanager
    def training(self) -> Iterator[None]:
        """Tell that the trainings in this block look at ``is_due`` at every step."""
        before, self.is_training = self.is_training, True
        try:
            yield
        finally:
            self.is_training = before

    @property
    def is_due(self) -> bool:
        """Whether the training at work should keep its state now."""
        return self._asked.is_set() or time.monotonic() - self._last >= self._seconds

    def turn_to(self, work: str) -> bool:
        """Say of which work the trainings from here on are; parts of other work are let go of.

        Args:
            work: tells apart all that decides about the parts of the work, and their order.

        Returns:
            Whether what an earlier attempt left is of this work. It is not looked at any more
            if not.
        """
        self._work = work
        self._parts = {}
        if self._head.get("work", "") != work:
            self._give_up("other_work")
        return self._found is not None

    def restore(self, fingerprint: str) -> State | None:
        """Return what an earlier attempt at this very training left, once; None if nothing did."""
        if self._found is not None and self._head.get("fingerprint") != fingerprint:
            self._give_up("other_training")
        if self._found is None:
            return None
        tensors = self._load("")
        self._found = None  # whatever is trained from here on was not begun before
        return State(tensors, self._head["numbers"])

    def recall(self, name: str) -> Tensors | None:
        """Return a part that was finished before; None if it was not.

        Those that are not asked for before a training goes on are forgotten.
        """
        names = self._head.get("parts", [])
        if self._found is not None and name in names:
            self._parts[name] = self._load(f"{_PART}{names.index(name)}.")
        return self._parts.get(name)

    def finish(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep what a finished part of the work left, with every state from here on."""
        # Copies: the training that follows may go on with the same weights.
        self._parts[name] = {
            key: value.detach().to("cpu", copy=True).contiguous() for key, value in tensors.items()
        }

    def save(self, fingerprint: str, state: State) -> None:
        """Keep a state, durably.

        Raises:
            Interrupted: once it is kept, if the process was asked to end.
        """
        from safetensors.torch import save_file  # not before a training needs it

        self._count += 1
        path = self._folder / f"checkpoint-{self._count}.safetensors"
        draft = path.with_suffix(".draft")
        head = {
            "work": self._work,
            "fingerprint": fingerprint,
            "numbers": state.numbers,
            "parts": [*self._parts],
            "notes": self.notes,
        }
        done = {
            f"{_PART}{index}.{key}": value
            for index, tensors in enumerate(self._parts.values())
            for key, value in tensors.items()
        }
        save_file(state.tensors | done, draft, {STATE: json.dumps(head)})
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
            self._give_up("unreadable")
            return {}

    def _load(self, prefix: str) -> Tensors:
        """Read the tensors of one part, or with no prefix those of the training at work."""
        with safe_open(self._found, "pt") as file:
            names = [
                name
                for name in file.keys()  # noqa: SIM118  # it is no mapping
                if (name.startswith(prefix) if prefix else not name.startswith(_PART))
            ]
            return {name.removeprefix(prefix): file.get_tensor(name) for name in names}

    def _give_up(self, reason: Ignored) -> None:
        """Go on as if nothing had been found: the work starts from zero."""
        if self._found is not None and self._ignored is not None:
            self._ignored(reason)
        self._found = None


def once(
    keeper: Keeper | None, name: str, make: Callable[[], Mapping[str, Tensor]]
) -> Mapping[str, Tensor]:
    """Do one part of the work at hand, unless an interrupted attempt had finished it.

    Args:
        keeper: keeps what it left; None does every part.
        name: tells it from the other parts.
        make: does it, and returns what it leaves.
    """
    if keeper is None:
        return make()
    found = keeper.recall(name)
    if found is not None:
        return found
    made = make()
    keeper.finish(name, made)
    return made
