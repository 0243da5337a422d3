"""What an attempt at a job holds, and what it learns when it renews its hold."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from core.situation import Purpose, Selector

from ..audits import Subject
from ..budget import Spent
from ..resolution import Rows
from ..tables import Dataset, Job, Model, Version


@dataclass(frozen=True)
class Claim:
    """One attempt at a job, with the rows it needs; they stay readable after the transaction."""

    job: Job
    epoch: int
    """Fencing token: every later verb of this attempt matches on it."""
    dataset: Dataset | None = None
    model: Model | None = None
    samples: Dataset | None = None
    """unlearn: the records that came with the request, where ``dataset`` did not."""
    version: Version | None = None
    """unlearn: the base; else the version to prepare, audit or compare with."""
    holdout: Dataset | None = None
    """The same row as ``dataset`` when that dataset's own holdout split is used."""
    excluded: Rows = field(default_factory=lambda: np.empty(0, np.int64))
    """Training rows that the lineage has forgotten."""
    requests: dict[str, Rows] = field(default_factory=dict)
    """unlearn: request id -> rows that are still to be forgotten."""
    forget_classes: tuple[int, ...] = ()
    purpose: Purpose = "erasure"
    """unlearn: what its requests, which share it, are for."""
    earlier: dict[str, Rows] = field(default_factory=dict)
    """unlearn: id of an applied request of the lineage -> the rows that it had forgotten."""
    spent: Spent = field(default_factory=Spent)
    """unlearn: what the lineage has used of its deletion budget."""
    seconds_per_pass: float | None = None
    """unlearn: over the training records, as far as it was measured."""
    subject: Subject | None = None
    """audit: whose traces to look for."""
    oracles: tuple[Version, ...] = ()
    """audit: models that never saw the subject."""

    @property
    def nothing_left(self) -> bool:
        """Whether every record of the job has been forgotten before."""
        return self.job.kind == "unlearn" and not any(len(rows) for rows in self.requests.values())

    @property
    def selector(self) -> Selector:
        """``class`` or ``records``."""
        return "class" if self.forget_classes else "records"


@dataclass(frozen=True)
class Renewal:
    """What an attempt learns when it renews its lease."""

    alive: bool
    """False if the job is not this attempt's any more: stop, and write nothing."""
    cancel: bool
    """Whether somebody asked to cancel the job."""
