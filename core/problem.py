"""What an unlearner is given (Problem) and what an audit is given (Evidence)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .bank import References
from .checkpoints import Keeper
from .data import Records
from .errors import MissingEvidence, OutOfTime
from .importance import Importance
from .masks import apply_masks
from .policies import Purpose, Selector
from .report import Progress, no_progress
from .team import Team
from .training import Recipe

BatchNormPolicy = Literal["frozen", "tracked", "recalibrate"]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """All an unlearner is given. ``model`` is a private copy that may be changed in place."""

    model: nn.Module
    fresh: Callable[[int], nn.Module]
    """Builds the same network with a new random initialisation from a seed."""
    forget: Records
    retain: Records | None
    tuning: Records | None
    """Tuning half of the holdout: for searches and early stopping, never for gates."""
    recipe: Recipe | None
    importance: Importance | None
    """Stored per-parameter importance of the parent over its training records, from ``prepare``."""
    selector: Selector
    num_classes: int
    seed: int
    purpose: Purpose = "erasure"
    """Poison is forgotten when it loses its label, an erased record when it is as one unseen."""
    batch_size: int = 256
    bn_policy: BatchNormPolicy = "recalibrate"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    progress: Progress = no_progress
    deadline: float | None = None
    """``time.monotonic()`` value after which ``check_time`` raises."""
    tried: list[dict[str, Any]] = field(default_factory=list)
    """An unlearner appends every hyper-parameter it tried, with what it measured."""
    masks: Mapping[str, Tensor] | None = None
    """bool per parameter name where the model is pruned: False stays exactly zero."""
    keeper: Keeper | None = None
    """Keeps the state of a long training, and has what an interrupted one left."""

    team: Team = field(default_factory=Team)
    """How many processes may share a training; told how many did."""

    def __post_init__(self) -> None:
        if len(self.forget) == 0:
            raise MissingEvidence("the forget set is empty")

    @property
    def forgotten_classes(self) -> list[int]:
        """Classes that are to be forgotten as a whole; none where the request names records."""
        return self.forget.labels.unique().tolist() if self.selector == "class" else []

    def keep_masks(self, model: nn.Module) -> None:
        """Set pruned weights to zero again; weight decay, noise and momentum ignore masks."""
        apply_masks(model, self.masks)

    def check_time(self) -> None:
        """Raise OutOfTime once the wall-clock limit of the job is spent."""
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise OutOfTime("the time limit of the job is spent")


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All an audit is given. Models are in eval mode and must not be changed."""

    before: nn.Module
    after: nn.Module
    forget: Records
    retain: Records | None
    """A seeded sample of the retain set, of bounded size."""
    holdout: Records | None
    """Judging half of the holdout only."""
    selector: Selector
    num_classes: int
    forget_classes: frozenset[int]
    """Classes that a ``class`` request names; empty for records."""
    purpose: Purpose = "erasure"
    """Decides which forgetting gates count: poison need not be as if never seen."""
    scores: Mapping[str, Mapping[str, Tensor]]
    """``scores[model][role]``: logits[N, C] in float32 for model ``before`` or ``after`` and role
    ``forget``, ``retain`` or ``holdout``; computed once, shared by all audits. With oracles also
    models ``oracle``, ``oracle_2`` and so on."""
    oracles: tuple[nn.Module, ...] = ()
    """Models trained on the retain set alone, apart in their seeds: the first is what a perfect
    unlearner would hand back, a second one tells how far two such models are apart."""
    references: References | None = None
    """Margins of reference models for the forget and holdout records, in their order."""
    tuning: Records | None = None
    """Tuning half of the holdout."""
    recipe: Recipe | None = None
    fresh: Callable[[int], nn.Module] | None = None
    """Builds the same network with a new random initialisation from a seed."""
    seed: int = 0
    batch_size: int = 256
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    check_time: Callable[[], None] = lambda: None
    """Raises OutOfTime once the wall-clock limit of the job is spent."""

    def need_holdout(self) -> Records:
        """Return the holdout, or raise MissingEvidence."""
        if self.holdout is None or len(self.holdout) == 0:
            raise MissingEvidence("no holdout was registered with the model")
        return self.holdout

    def need_retain(self) -> Records:
        """Return the retained records, or raise MissingEvidence."""
        if self.retain is None or len(self.retain) == 0:
            raise MissingEvidence("no training record stays")
        return self.retain

    def need_oracle(self) -> nn.Module:
        """Return the first oracle, or raise MissingEvidence."""
        if not self.oracles:
            raise MissingEvidence("no oracle was trained for this forget set")
        return self.oracles[0]

    def need_references(self) -> References:
        """Return what the reference models say, or raise MissingEvidence."""
        if self.references is None:
            raise MissingEvidence("no reference models were trained")
        return self.references

    def of_forget(self, at: Tensor) -> Evidence:
        """Evidence about the forget records at these positions alone."""
        forget = self.forget.take(at)
        references = None if self.references is None else self.references.of_forget(at)
        return replace(
            self,
            forget=forget,
            forget_classes=self.forget_classes & set(forget.labels.tolist()),
            references=references,
            scores={
                model: {**scores, "forget": scores["forget"][at]}
                for model, scores in self.scores.items()
            },
        )
