"""Confidence intervals and power of the statistics that judge a model.

All are on the CPU in float64. ``level`` is the two-sided confidence level; gates use 90 %.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from scipy import special
from torch import Tensor


class Estimate(NamedTuple):
    """A value with its confidence interval."""

    value: float
    low: float
    high: float


def proportion(successes: int, trials: int, *, level: float = 0.90) -> Estimate:
    """Share of successes with its Clopper-Pearson interval (exact, so on the wide side).

    Example:
        >>> round(proportion(0, 29).high, 4)
        0.0981
    """
    need(trials, "trials")
    tail, failures = (1 - level) / 2, trials - successes
    low = special.betaincinv(successes, failures + 1, tail) if successes else 0.0
    high = special.betaincinv(successes + 1, failures, 1 - tail) if failures else 1.0
    return Estimate(successes / trials, float(low), float(high))


def paired_drop(before_N: Tensor, after_N: Tensor, *, level: float = 0.90) -> Estimate:
    """Accuracy before minus accuracy after on the same records, with its interval.

    Half a pair is added to each of the four cells, so that no change at all among a few records
    still has a width.

    Args:
        before_N: whether the first model was right, as booleans.
        after_N: whether the second model was right on the same records.

    Source: Agresti and Min 2005, Statistics in Medicine 24.

    Example:
        >>> right = torch.ones(98, dtype=torch.bool)
        >>> [round(x, 4) for x in paired_drop(right, right)]
        [0.0, -0.0164, 0.0164]
    """
    n = len(before_N)
    need(n, "records")
    lost = int((before_N & ~after_N).sum())
    won = int((~before_N & after_N).sum())
    z = float(special.ndtri(0.5 + level / 2))
    centre = (lost - won) / (n + 2)
    spread = math.sqrt(max(lost + won + 1 - (lost - won) ** 2 / (n + 2), 0.0)) / (n + 2)
    low, high = centre - z * spread, centre + z * spread
    return Estimate((lost - won) / n, max(low, -1.0), min(high, 1.0))


def proportion_difference(
    first: float, n: float, second: float, m: float, *, level: float = 0.90
) -> Estimate:
    """Difference of two independent shares with its interval; sizes may be effective sizes.

    Source: Agresti and Caffo 2000, The American Statistician 54: one success and one failure are
    added to each side.

    Example:
        >>> estimate = proportion_difference(1.0, 3, 1.0, 1000)
        >>> estimate.value, estimate.high - estimate.low > 0.3
        (0.0, True)
    """
    need(n, "records")
    need(m, "records")
    z = float(special.ndtri(0.5 + level / 2))
    p, q = (first * n + 1) / (n + 2), (second * m + 1) / (m + 2)
    half = z * math.sqrt(p * (1 - p) / (n + 2) + q * (1 - q) / (m + 2))
    return Estimate(first - second, max(p - q - half, -1.0), min(p - q + half, 1.0))


def proportion_null_sd(share: float, n: float, m: float) -> float:
    """Standard deviation of a difference of proportions where both sides have this share.

    As in ``proportion_difference`` one success and one failure are added: no share is certain.

    Example:
        >>> round(proportion_null_sd(0.5, 98, 98), 4), proportion_null_sd(1.0, 98, 98) > 0
        (0.0707, True)
    """
    near = (share * m + 1) / (m + 2)
    return math.sqrt(near * (1 - near) * (1 / (n + 2) + 1 / (m + 2)))


def auc_interval(
    members: Tensor, others: Tensor, weights: Tensor | None = None, *, level: float = 0.90
) -> Estimate:
    """AUC of ``membership_auc`` with a confidence interval.

    The variance is DeLong's (placements of each side) on the logit scale. Where fewer than about
    five records are out of order that spread says little, and complete separation would look
    like certainty: there the score interval of an exponential model is used, widened where
    DeLong's variance is the larger one.

    Source: DeLong et al. 1988, Biometrics 44; Newcombe 2006, Statistics in Medicine 25, method 5.

    Example:
        >>> estimate = auc_interval(torch.tensor([2.0, 3.0, 4.0]), torch.tensor([0.0, 1.0]))
        >>> estimate.value, estimate.low < 0.9, estimate.high
        (1.0, True, 1.0)
    """
    above_N, below_M, w_M = placements(members, others, weights)
    value = float(above_N.mean())
    z = float(special.ndtri(0.5 + level / 2))
    n, m = len(above_N), effective_size(w_M)
    variance = _delong_variance(above_N, below_M, w_M)
    if _few_errors(value, n, m):
        model = _exponential_variance(value, n, m)
        widen = math.sqrt(max(variance / model, 1.0)) if model > 0 else 1.0
        return _score_interval(value, n, m, z * widen)
    half = z * math.sqrt(variance) / (value * (1 - value))
    centre = math.log(value / (1 - value))
    return Estimate(value, _sigmoid(centre - half), _sigmoid(centre + half))


def effective_size(weights: Tensor) -> float:
    """Number of equally weighted records that would be as informative (Kish).

    Example:
        >>> effective_size(torch.ones(7)), effective_size(torch.tensor([1.0, 0.0]))
        (7.0, 1.0)
    """
    w = weights.double()
    return float(w.sum() ** 2 / (w**2).sum())


def auc_null_sd(num_members: float, num_others: float) -> float:
    """Standard deviation of the AUC when both sides are alike.

    Example:
        >>> round(auc_null_sd(100, 100), 4)
        0.0409
    """
    need(num_members, "members")
    need(num_others, "non-members")
    return math.sqrt((num_members + num_others + 1) / (12 * num_members * num_others))


def equivalence_power(band: float, sd: float, *, level: float = 0.90) -> float:
    """Probability that an interval of this level lies inside +-band when the truth is 0.

    Example:
        >>> sizes = (50, 200, 500, 1000)
        >>> [round(equivalence_power(0.05, auc_null_sd(n, 10_000)), 2) for n in sizes]
        [0.0, 0.56, 0.97, 1.0]
    """
    z = float(special.ndtri(0.5 + level / 2))
    if sd == 0:
        return 1.0 if band > 0 else 0.0
    return max(0.0, 2 * float(special.ndtr((band - z * sd) / sd)) - 1)


def placements(
    members: Tensor, others: Tensor, weights: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Rank every score among the scores of the other side; ties count half.

    Returns:
        the weighted share of others below each member [N], the share of members above each
        other [M], and the weights [M] normalised to sum 1.

    Raises:
        ValueError: if a side is empty or a score is NaN.
    """
    need(len(members), "members")
    need(len(others), "non-members")
    x, y = members.double(), others.double()
    if bool(torch.isnan(x).any() or torch.isnan(y).any()):
        raise ValueError("scores hold NaN")
    w = torch.ones_like(y) if weights is None else weights.double()
    w = w / w.sum()
    sorted_y, order = y.sort()
    cumulated = torch.cat([w.new_zeros(1), w[order].cumsum(0)])
    above = _mid_mass(sorted_y, cumulated, x)
    sorted_x = x.sort().values
    counts = torch.arange(len(x) + 1, dtype=torch.float64) / len(x)
    under = _mid_mass(sorted_x, counts, y)
    return above.clamp(0, 1), 1 - under, w


def _mid_mass(ordered: Tensor, cumulated: Tensor, at: Tensor) -> Tensor:
    below = cumulated[torch.searchsorted(ordered, at)]
    up_to = cumulated[torch.searchsorted(ordered, at, right=True)]
    return (below + up_to) / 2


def _delong_variance(above_N: Tensor, below_M: Tensor, w_M: Tensor) -> float:
    value = above_N.mean()
    n = len(above_N)
    first = float(((above_N - value) ** 2).sum()) / max(n - 1, 1) / n
    share = float((w_M**2).sum())
    correction = 1 / (1 - share) if share < 1 else 1.0
    second = float((w_M**2 * (below_M - value) ** 2).sum()) * correction
    return first + second


def _exponential_variance(value: float, n: float, m: float) -> float:
    """Variance of the AUC under the exponential model of Hanley and McNeil, the larger way round.

    The model spreads one side more than the other; which one is not known.
    """
    if not 0 < value < 1:
        return 0.0
    narrow, wide = (1 - value) / (2 - value), value / (1 + value)
    small, large = min(n, m) - 1, max(n, m) - 1
    pairs = small * min(narrow, wide) + large * max(narrow, wide)
    return value * (1 - value) * (1 + max(pairs, 0.0)) / (n * m)


def _few_errors(value: float, n: float, m: float) -> bool:
    """Whether so few pairs are out of order that their observed spread says little."""
    return min(value, 1 - value) * min(n, m) < 5


def _score_interval(value: float, n: float, m: float, z: float) -> Estimate:
    def bound(outer: float) -> float:
        inner = value
        for _ in range(60):
            middle = (inner + outer) / 2
            inside = abs(middle - value) <= z * math.sqrt(_exponential_variance(middle, n, m))
            inner, outer = (middle, outer) if inside else (inner, middle)
        return inner

    low = 0.0 if value == 0 else bound(0.0)
    high = 1.0 if value == 1 else bound(1.0)
    return Estimate(value, low, high)


def _sigmoid(x: float) -> float:
    return 0.5 * (1 + math.tanh(x / 2))


def need(count: float, what: str) -> None:
    """Raise ValueError unless there is at least one of what is counted."""
    if count <= 0:
        raise ValueError(f"there are no {what}")
