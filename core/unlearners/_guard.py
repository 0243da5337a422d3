"""Whether a trial forgot enough and kept its utility, on tuning records alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..data import Records
from ..determinism import generator
from ..errors import MissingEvidence
from ..forgetting import POISON_SHARE
from ..measures import accuracy, correct
from ..problem import Problem
from ..scores import gather, match_classes

MOST_RECORDS = 1000
"""Records of each kind that a trial looks at."""

ALLOWANCE = 0.02
"""Accuracy on forget records may exceed the one on never-seen records by this much."""

POISON_TARGET = POISON_SHARE / 2
"""Share of the parent's accuracy on poison; below the gate's, which asks for certainty too."""


@dataclass(frozen=True)
class Trial:
    """What a trial measured on tuning data."""

    forget_accuracy: float
    target: float
    """Forgotten enough at or below this."""
    utility_drop: float
    forgot: bool
    kept_utility: bool

    def as_dict(self) -> dict[str, Any]:
        """All fields, for the record of trials."""
        return asdict(self)


class Guard:
    """Samples of the forget set and of the tuning half, and what the parent scores there.

    For a class, forgotten means at most chance, and utility is that of the other classes. For
    records, forgotten means at most the accuracy on never-seen records of the same class mix. For
    poison, whose labels are wrong, it means at most a share of the parent's accuracy on it.

    Raises:
        MissingEvidence: without tuning records.
    """

    def __init__(self, problem: Problem, max_utility_drop: float) -> None:
        if problem.tuning is None or len(problem.tuning) == 0:
            raise MissingEvidence("the guarded search needs tuning records")
        self._problem = problem
        self._max_drop = max_utility_drop
        self._forget = sample(problem.forget, problem.seed)
        self._tuning = sample(problem.tuning, problem.seed)
        self._kept = torch.ones(len(self._tuning), dtype=torch.bool)
        if problem.selector == "class":
            self._kept = ~torch.isin(self._tuning.labels, problem.forget.labels.unique())
            if not bool(self._kept.any()):
                raise MissingEvidence("no tuning record is of a class that stays")
        self._before = self._kept_accuracy(self._logits(problem.model, self._tuning))
        self._poison: float | None = None
        if problem.purpose == "poison_removal":
            known = accuracy(self._logits(problem.model, self._forget), self._forget.labels)
            self._poison = POISON_TARGET * known

    def measure(self, model: nn.Module) -> Trial:
        """Judge a trial."""
        forget = self._logits(model, self._forget)
        tuning = self._logits(model, self._tuning)
        forget_accuracy, target = self._forget_target(forget, tuning)
        drop = self._before - self._kept_accuracy(tuning)
        return Trial(
            forget_accuracy=forget_accuracy,
            target=target,
            utility_drop=drop,
            forgot=forget_accuracy <= target,
            kept_utility=drop <= self._max_drop,
        )

    def _forget_target(self, forget: Tensor, tuning: Tensor) -> tuple[float, float]:
        if self._poison is not None:
            return accuracy(forget, self._forget.labels), self._poison
        if self._problem.selector == "class":
            chance = 1 / self._problem.num_classes
            return accuracy(forget, self._forget.labels), chance
        match = match_classes(self._forget.labels, self._tuning.labels)
        right = correct(tuning, self._tuning.labels).double()
        # All never-seen records stand in where none is of a forget record's class.
        matched = len(match.forget) / len(self._forget)
        never_seen = matched * float((right[match.others] * match.weights).sum())
        never_seen += (1 - matched) * float(right.mean())
        return accuracy(forget, self._forget.labels), never_seen + ALLOWANCE

    def _kept_accuracy(self, tuning: Tensor) -> float:
        return accuracy(tuning[self._kept], self._tuning.labels[self._kept])

    def _logits(self, model: nn.Module, records: Records) -> Tensor:
        problem = self._problem
        return gather(model, records, batch_size=problem.batch_size, device=problem.device)


def sample(records: Records, seed: int) -> Records:
    """Return at most ``MOST_RECORDS`` of the records, drawn with this seed."""
    if len(records) <= MOST_RECORDS:
        return records
    order = torch.randperm(len(records), generator=generator(seed))[:MOST_RECORDS]
    return records.take(order.sort().values)
