"""What can go wrong with numbers and files.

CoreError
|-- InvalidInput      a file, a dataset or a configuration that cannot be used; carries a code
|-- UnknownName       a registry has no entry of that name
|-- MissingEvidence   an audit lacks what it needs; becomes an ``inconclusive`` finding
|-- NothingChanged    an unlearner returned the parent's parameters
|-- Diverged          a loss, a weight or a score is not finite, or a loss exploded
|-- Infeasible        a guarded search found no strength that forgets and keeps utility
`-- OutOfTime         the wall-clock limit of the job is spent
"""

from __future__ import annotations

from typing import ClassVar


class CoreError(Exception):
    """Base of everything core raises on purpose; ``code`` is stable and machine-readable."""

    code: ClassVar[str] = "core_error"


class InvalidInput(CoreError):
    """A file, a dataset or a configuration that cannot be used.

    The message must hold no personal data: no record ids, no subject ids, no cell contents.
    """

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code  # type: ignore[misc]  # per instance here, per class elsewhere
        self.detail = detail


class Interrupted(Exception):
    """The process was asked to end, and the training at work has kept its state; no refusal."""


class ProcessDied(Exception):
    """A process that shared a training ended before its time; no refusal, it may be tried again."""


class UnknownName(CoreError):
    """A registry has no entry of that name."""

    code = "unknown_name"


class MissingEvidence(CoreError):
    """An audit lacks what it needs; becomes an ``inconclusive`` finding with the reason."""

    code = "missing_evidence"


class NothingChanged(CoreError):
    """An unlearner returned the parent's parameters."""

    code = "nothing_changed"


class Diverged(CoreError):
    """A loss, a weight or a score is not finite, or a loss exploded."""

    code = "diverged"


class Infeasible(CoreError):
    """A guarded search found no strength that forgets and keeps utility."""

    code = "infeasible"


class OutOfTime(CoreError):
    """The wall-clock limit of the job is spent."""

    code = "out_of_time"
