"""Pure functions of tensors: accuracies, scores, and the statistics that judge them.

Shapes: logits_NC has one row per record and one column per class; labels_N holds class indices.
Everything is computed in float64 on the CPU, because evidence rests on it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from scipy import special
from torch import Tensor
from torch.nn import functional as F

from .intervals import (
    Estimate,
    effective_size,
    need,
    placements,
    proportion,
    proportion_difference,
)


def accuracy(logits_NC: Tensor, labels_N: Tensor) -> float:
    """Share of records whose largest logit is the label's.

    Raises:
        ValueError: if there are no records.

    Example:
        >>> accuracy(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0]))
        0.5
    """
    return float(correct(logits_NC, labels_N).double().mean())


def correct(logits_NC: Tensor, labels_N: Tensor) -> Tensor:
    """Tell for each record whether its largest logit is the label's; a row with NaN is wrong.

    Example:
        >>> correct(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0])).tolist()
        [True, False]
    """
    need(len(labels_N), "records")
    hit = logits_NC.argmax(dim=1) == labels_N
    return hit & torch.isfinite(logits_NC).all(dim=1)


def accuracy_per_class(logits_NC: Tensor, labels_N: Tensor) -> dict[int, Estimate]:
    """Accuracy of every class that occurs, with its 90 % Clopper-Pearson interval.

    Example:
        >>> logits = torch.tensor([[2.0, 1.0], [0.0, 3.0]])
        >>> result = accuracy_per_class(logits, torch.tensor([0, 1]))
        >>> {label: estimate.value for label, estimate in result.items()}
        {0: 1.0, 1: 1.0}
    """
    hit = correct(logits_NC, labels_N)
    found = {}
    for label in labels_N.unique().tolist():
        of_class = hit[labels_N == label]
        found[int(label)] = proportion(int(of_class.sum()), len(of_class))
    return found


def cross_entropy(logits_NC: Tensor, labels_N: Tensor) -> Tensor:
    """Loss per record in nats.

    Example:
        >>> cross_entropy(torch.tensor([[0.0, 0.0]]), torch.tensor([1])).item() == math.log(2)
        True
    """
    return F.cross_entropy(logits_NC.double(), labels_N, reduction="none")


def margin(logits_NC: Tensor, labels_N: Tensor) -> Tensor:
    """Logit of the label minus the log-sum-exp of the others: log(p_y / (1 - p_y)), unclipped.

    Source: the score scale of LiRA; Carlini et al. 2022, arXiv:2112.03570.

    Example:
        >>> round(margin(torch.tensor([[0.7, 0.2, 0.1]]).log(), torch.tensor([0])).item(), 6)
        0.847298
    """
    logits = logits_NC.double()
    of_label = logits.gather(1, labels_N[:, None]).squeeze(1)
    others = logits.scatter(1, labels_N[:, None], -math.inf)
    return of_label - others.logsumexp(dim=1)


def entropy(logits_NC: Tensor) -> Tensor:
    """Entropy of the predicted distribution in nats.

    Example:
        >>> round(entropy(torch.tensor([[0.7, 0.2, 0.1]]).log()).item(), 6)
        0.801819
    """
    log_p = logits_NC.double().log_softmax(dim=1)
    return -(log_p.exp() * log_p).nan_to_num().sum(dim=1)


def modified_entropy(logits_NC: Tensor, labels_N: Tensor) -> Tensor:
    """Entropy that knows the label: 0 for a sure right answer, large for a sure wrong one.

    -(1 - p_y) log p_y - sum over i != y of p_i log(1 - p_i), with p kept in [1e-12, 1 - 1e-12].

    Source: Song and Mittal 2021, arXiv:2003.10595.

    Example:
        >>> logits = torch.tensor([[0.7, 0.2, 0.1]]).log()
        >>> round(modified_entropy(logits, torch.tensor([1])).item(), 6)
        2.140867
    """
    p = logits_NC.double().softmax(dim=1).clamp(1e-12, 1 - 1e-12)
    terms = -p * torch.log1p(-p)
    own = p.gather(1, labels_N[:, None])
    terms = terms.scatter(1, labels_N[:, None], -(1 - own) * own.log())
    return terms.sum(dim=1)


def membership_auc(members: Tensor, others: Tensor, weights: Tensor | None = None) -> float:
    """Probability that a random member scores above a random non-member.

    Args:
        members: scores[N], higher means "was trained on"; any real unit.
        others: scores[M], same unit, from the holdout set.
        weights: non-negative weights[M] of the others, for instance to match class histograms.

    Returns:
        AUC in [0, 1]; 0.5 means the attack learns nothing. Ties count half.

    Raises:
        ValueError: if either tensor is empty.

    Source: Yeom et al. 2018, arXiv:1709.01604, loss-threshold attack; ties as in Mann-Whitney U.

    Example:
        >>> membership_auc(torch.tensor([2.0, 3.0]), torch.tensor([1.0]))
        1.0
    """
    above_N, _, _ = placements(members, others, weights)
    return float(above_N.mean())


def tpr_at_fpr(
    members: Tensor, others: Tensor, weights: Tensor | None = None, *, fpr: float = 0.01
) -> Estimate:
    """Share of members above the score that at most ``fpr`` of the others exceed; 90 % interval.

    Raises:
        ValueError: if there are too few others for one of them to make up ``fpr``.

    Example:
        >>> tpr_at_fpr(torch.tensor([5.0, 50.0, 99.5, 100.0]), torch.arange(100.0)).value
        0.5
    """
    need(len(members), "members")
    w = torch.ones(len(others)).double() if weights is None else weights.double()
    if len(others) == 0 or effective_size(w) * fpr < 1 - 1e-9:
        raise ValueError(f"{len(others)} non-members cannot show a false positive rate of {fpr:g}")
    ordered, order = others.double().sort(descending=True)
    above = w[order].cumsum(0) / w.sum()
    allowed = int((above <= fpr + 1e-9).sum())
    threshold = ordered[min(allowed, len(ordered) - 1)]
    return proportion(int((members.double() > threshold).sum()), len(members))


def balanced_accuracy(members: Tensor, others: Tensor, weights: Tensor | None = None) -> Estimate:
    """Balanced accuracy of the best threshold, chosen on every second score, on the rest.

    90 % interval. Half of it is chance; chosen and judged on the same scores, chance would be more.

    Raises:
        ValueError: if either side has fewer than two scores.

    Example:
        >>> balanced_accuracy(torch.tensor([2.0, 3.0]), torch.tensor([1.0, 0.0])).value
        1.0
    """
    need(len(members) // 2, "members to choose a threshold on")
    need(len(others) // 2, "non-members to choose a threshold on")
    x, y = members.double(), others.double()
    w = torch.ones_like(y) if weights is None else weights.double()
    above = _shares_above(x[::2], y[::2], w[::2], torch.cat([x[::2], y[::2]]).unique())
    best = int((above.members - above.others).argmax())
    found = _shares_above(x[1::2], y[1::2], w[1::2], above.thresholds[best : best + 1])
    gap = proportion_difference(
        float(found.members), len(x) // 2, float(found.others), effective_size(w[1::2])
    )
    return Estimate(*(0.5 + each / 2 for each in gap))


class _Above(NamedTuple):
    """Shares of members and of others above each threshold."""

    thresholds: Tensor
    members: Tensor
    others: Tensor


def _shares_above(x: Tensor, y: Tensor, weights: Tensor, thresholds: Tensor) -> _Above:
    ordered, order = y.sort()
    mass = torch.cat([y.new_zeros(1), weights[order].cumsum(0) / weights.sum()])
    below = torch.searchsorted(x.sort().values, thresholds, right=True).double() / len(x)
    others = mass[torch.searchsorted(ordered, thresholds, right=True)]
    return _Above(thresholds, 1 - below, (1 - others).clamp(0, 1))


def kolmogorov_smirnov(
    first: Tensor, second: Tensor, weights: Tensor | None = None
) -> tuple[float, float]:
    """Largest distance between two empirical distributions, and its two-sided p-value.

    With weights (of the second sample) the p-value is asymptotic, at the effective sample size.

    Example:
        >>> kolmogorov_smirnov(torch.zeros(3), torch.ones(3))[0]
        1.0
    """
    need(len(first), "first scores")
    need(len(second), "second scores")
    x, y = first.double(), second.double()
    if weights is None or bool((weights == weights[0]).all()):
        from scipy import stats  # takes most of a second, so not before it is needed

        result = stats.ks_2samp(x.numpy(), y.numpy())
        return float(result.statistic), float(result.pvalue)
    ordered, order = y.sort()
    mass = torch.cat([x.new_zeros(1), weights.double()[order].cumsum(0) / weights.double().sum()])
    points = torch.cat([x, y])
    share = torch.searchsorted(x.sort().values, points, right=True) / len(x)
    distance = float((share - mass[torch.searchsorted(ordered, points, right=True)]).abs().max())
    n, m = len(x), effective_size(weights)
    return distance, float(special.kolmogorov(distance * (n * m / (n + m)) ** 0.5))
