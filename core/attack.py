"""The population attack: do forget records score like never-seen records of the same classes?

Source: Yeom et al. 2018, arXiv:1709.01604, on the score scale of Carlini et al. 2022,
arXiv:2112.03570.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .errors import MissingEvidence
from .findings import Verdict
from .intervals import Estimate, auc_interval, auc_null_sd, equivalence_power
from .measures import margin, modified_entropy
from .problem import Evidence
from .scores import Match, match_classes

WIDEST_BAND = 0.05
"""Difference to never-seen data that is never allowed to be exceeded."""

Score = Callable[[Tensor, Tensor], Tensor]
"""Logits and labels to one score per record; higher means "was trained on"."""


def sureness(logits_NC: Tensor, labels_N: Tensor) -> Tensor:
    """Modified entropy with its sign turned, so that higher means "was trained on"."""
    return -modified_entropy(logits_NC, labels_N)


@dataclass(frozen=True)
class Population:
    """Forget records beside never-seen records with the same class mix."""

    evidence: Evidence
    match: Match
    unmatched: int
    """Forget records of classes without a never-seen record; they are left out."""

    @property
    def left_out(self) -> str | None:
        """What to say of the records that could not be compared; None if all were."""
        if not self.unmatched:
            return None
        return f"{self.unmatched} forget records have no never-seen record of their class; left out"

    def judged(self, verdict: Verdict) -> Verdict:
        """Return the verdict for the whole forget set: what was left out can't have passed."""
        return "inconclusive" if self.unmatched and verdict == "passed" else verdict

    def scores(
        self, model: Literal["before", "after"], score: Score = margin
    ) -> tuple[Tensor, Tensor]:
        """Scores of the forget records and of the never-seen ones.

        Raises:
            MissingEvidence: if a score is not a number.
        """
        logits, holdout = self.evidence.scores[model], self.evidence.need_holdout()
        members = score(logits["forget"], self.evidence.forget.labels)[self.match.forget]
        others = score(logits["holdout"], holdout.labels)[self.match.others]
        if bool(torch.isnan(members).any() or torch.isnan(others).any()):
            raise MissingEvidence("some scores are not a number")
        return members, others

    def auc(
        self, model: Literal["before", "after"], score: Score = margin, *, level: float = 0.90
    ) -> Estimate:
        """AUC of the attack on a model with its interval."""
        members, others = self.scores(model, score)
        return auc_interval(members, others, self.match.weights, level=level)

    def power(self, band: float) -> float:
        """Probability that a perfect model's AUC interval lies within the band around 1/2."""
        return equivalence_power(band, auc_null_sd(len(self.match.forget), self.match.effective))


def population(evidence: Evidence) -> Population:
    """Match the forget set with never-seen records.

    Raises:
        MissingEvidence: without a holdout, or if it has no record of a forgotten class.
    """
    holdout = evidence.need_holdout()
    match = match_classes(evidence.forget.labels, holdout.labels)
    if len(match.others) == 0:
        raise MissingEvidence("the holdout has no record of a class in the forget set")
    return Population(evidence, match, len(evidence.forget) - len(match.forget))


def allowed_band(parent_distance: float) -> float:
    """Half the parent's own distance from never-seen data, at most 0.05.

    A wider band would pass a parent that hardly memorised, without any unlearning.
    """
    return min(WIDEST_BAND, abs(parent_distance) / 2)
