"""MIA-efficacy: a support vector machine on one score tells members from never-seen records.

It is fitted on retained against never-seen records of the audited model and then applied to the
forget records. Efficacy is the share of them that it takes for never-seen.

Source: Jia et al., NeurIPS 2023, arXiv:2304.04934 (SVC with RBF kernel, C = 3, gamma "auto").
Differs: members and never-seen records have one class mix, that of the forget set where its
    classes are retained (theirs: the first records that come); scores without augmentation; the
    entropies have their right formulas (theirs mixes up log p and log(1 - p)). Scores beyond the
    fitted ones are put at the end of their range: far from every fitted score the kernel is zero,
    and an intercept that knows nothing would decide.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .errors import MissingEvidence
from .intervals import Estimate, proportion
from .measures import correct, cross_entropy, entropy, modified_entropy
from .problem import Evidence
from .scores import draw_matched
from .verdicts import LEVEL

Feature = Literal["confidence", "correctness", "entropy", "modified_entropy"]

MOST_SCORES = 4000
"""Members and never-seen records together; the machine takes quadratic time."""


def efficacy(
    evidence: Evidence, model: str, feature: Feature, most_scores: int = MOST_SCORES
) -> Estimate:
    """Share of the forget records that the attack takes for never-seen, with its interval.

    Args:
        evidence: with retained and never-seen records.
        model: name of the model in ``evidence.scores``.
        feature: the one score that is looked at.
        most_scores: to fit on.

    Raises:
        MissingEvidence: if retained and never-seen records share no class, or a score is no number.
    """
    from sklearn.svm import SVC  # takes most of a second, so not before it is needed

    retain, holdout = evidence.need_retain(), evidence.need_holdout()
    logits = evidence.scores[model]
    members, others = draw_matched(
        evidence.forget.labels, retain.labels, holdout.labels, most_scores // 2, evidence.seed
    )
    of_members = score(logits["retain"], retain.labels, feature)[members]
    of_others = score(logits["holdout"], holdout.labels, feature)[others]
    of_forget = score(logits["forget"], evidence.forget.labels, feature)
    seen = torch.cat([of_members, of_others])
    if bool(torch.isnan(seen).any() or torch.isnan(of_forget).any()):
        raise MissingEvidence("some scores are not a number")
    truth = torch.cat([torch.ones(len(members)), torch.zeros(len(others))])
    attack = SVC(C=3, gamma="auto", kernel="rbf").fit(seen[:, None].numpy(), truth.numpy())
    of_forget = of_forget.clamp(float(seen.min()), float(seen.max()))
    unseen = int((attack.predict(of_forget[:, None].numpy()) == 0).sum())
    return proportion(unseen, len(of_forget), level=LEVEL)


def score(logits_NC: Tensor, labels_N: Tensor, feature: Feature) -> Tensor:
    """One number per record.

    Example:
        >>> logits = torch.tensor([[0.7, 0.2, 0.1]]).log()
        >>> round(score(logits, torch.tensor([1]), "confidence").item(), 6)
        0.2
    """
    match feature:
        case "confidence":
            return (-cross_entropy(logits_NC, labels_N)).exp()
        case "correctness":
            return correct(logits_NC, labels_N).double()
        case "entropy":
            return entropy(logits_NC)
        case "modified_entropy":
            return modified_entropy(logits_NC, labels_N)
