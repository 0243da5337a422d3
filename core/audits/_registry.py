"""The registry of audits, apart so that every audit can import it."""

from __future__ import annotations

from typing import Any, Protocol

from ..findings import Finding
from ..problem import Evidence
from ..registry import Registry


class Audit(Protocol):
    """Look at evidence, and say what was found; never decide."""

    __name__: str

    def __call__(self, evidence: Evidence, config: Any, /) -> list[Finding]: ...


audits: Registry[Audit] = Registry("audit")
