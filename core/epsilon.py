"""Forgetting quality from many models: how well an attacker tells unlearned from retrained ones.

For each record an attacker sees the margins of N unlearned and of N retrained models and looks for
the rule that tells them apart best; its error rates give an epsilon as in differential privacy.
It takes hundreds of models, so it is a measure for experiments and no audit of a request.

Two equal distributions do not score 1: with few errors in the tails some rule always looks good.
F of equal normal distributions is about 0.19 for 64 as for 512 models. Read F of a method beside
F of two sets of retrained models, never alone. N models resolve epsilon up to about ln(N - 1).

Source: Triantafillou et al. 2024, arXiv:2406.09073 (metric of the NeurIPS 2023 challenge).
Differs: intervals are counted on cumulated ranks, so the search is fast without a GPU; the caller's
margins stay as they are. Thresholds are 100 to a unit of the margin, but at most 4 000: where the
margins of both sides range over more than 40 the grid is coarser.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .intervals import need

LARGEST = 50.0
DELTA = 1e-5

_STEPS_PER_UNIT = 100
_MOST_STEPS = 4000
_WIDER = 2.0
"""Units by which an interval may be wider or narrower than the peakier side."""
_PEAKY = 0.01

_Floats = npt.NDArray[np.float64]


def epsilons(unlearned_NR: Tensor, retrained_NR: Tensor) -> Tensor:
    """Epsilon of the best attack per record, in [0, 50].

    Args:
        unlearned_NR: margins, one row per unlearned model and one column per record.
        retrained_NR: margins of the retrained models for the same records.

    Raises:
        ValueError: without models, or if the numbers of records differ.

    Example:
        >>> epsilons(torch.zeros(8, 1) + torch.arange(8)[:, None], torch.arange(8)[:, None] + 100.0)
        tensor([50.], dtype=torch.float64)
    """
    need(min(len(unlearned_NR), len(retrained_NR)), "models")
    if unlearned_NR.shape[1] != retrained_NR.shape[1]:
        raise ValueError("both sides must be of the same records")
    pairs = zip(unlearned_NR.double().numpy().T, retrained_NR.double().numpy().T, strict=True)
    return torch.tensor([_epsilon(*pair) for pair in pairs], dtype=torch.float64)


def points(epsilon_R: Tensor, num_models: int) -> Tensor:
    """1 for an epsilon below 0.5, half of it for each further 0.5, 0 beyond what N resolves.

    Example:
        >>> points(torch.tensor([0.0, 0.5, 1.6, 50.0]), 512).tolist()
        [1.0, 0.5, 0.125, 0.0]
    """
    steps = (epsilon_R.double() / 0.5).floor()
    resolved = (steps + 1) / 2 <= math.ceil(math.log(max(num_models - 1, 1)))
    return torch.where(resolved, 0.5**steps, 0.0)


def forgetting_quality(unlearned_NR: Tensor, retrained_NR: Tensor) -> float:
    """F: mean of the points over all records, in [0, 1]."""
    num_models = min(len(unlearned_NR), len(retrained_NR))
    return float(points(epsilons(unlearned_NR, retrained_NR), num_models).mean())


def final_score(
    quality: float,
    *,
    retain_accuracy: float,
    test_accuracy: float,
    retrained_retain_accuracy: float,
    retrained_test_accuracy: float,
) -> float:
    """F times the shares of retained and of test accuracy that are left; means over the models.

    Example:
        >>> final_score(0.2, retain_accuracy=0.9, test_accuracy=0.8,
        ...             retrained_retain_accuracy=1.0, retrained_test_accuracy=0.8)
        0.18000000000000002
    """
    kept = retain_accuracy / retrained_retain_accuracy
    return quality * kept * (test_accuracy / retrained_test_accuracy)


def _epsilon(first: _Floats, second: _Floats) -> float:
    small, large = sorted([first, second], key=lambda side: float(np.ptp(side)))
    if np.ptp(small) < _PEAKY * np.ptp(large):
        return LARGEST
    pooled = np.concatenate([first, second])
    low, high = float(pooled.min()), float(pooled.max())
    count = min(int((high - low) * _STEPS_PER_UNIT) + 2, _MOST_STEPS)
    grid = np.linspace(low, high, count)
    by_median = sorted([first, second], key=lambda side: float(np.median(side)))
    negative, positive = (_below(side, grid) for side in by_median)
    best = _best(1 - negative, positive)
    inside, outside = _below(small, grid), _below(large, grid)
    step = (high - low) / (count - 1)
    if step > 0:
        best = max(best, _best_interval(inside, outside, float(np.ptp(small)), step))
    return min(max(best, 0.0), LARGEST)


def _below(side: _Floats, grid: _Floats) -> _Floats:
    """Share of the values up to each point of the grid."""
    return np.searchsorted(np.sort(side), grid, side="right") / len(side)


def _best_interval(inside: _Floats, outside: _Floats, spread: float, step: float) -> float:
    """Best rule that takes everything in an interval about as wide as the peakier side for it."""
    best = 0.0
    narrowest = max(int((spread - _WIDER) / step), 1)
    widest = min(int((spread + _WIDER) / step) + 1, len(inside) - 1)
    # an interval starts just above a point of the grid, or below everything
    theirs, others = (np.concatenate([[0.0], side]) for side in (inside, outside))
    for width in range(narrowest, widest + 1):
        missed = 1 - (theirs[width:] - theirs[:-width])
        caught = others[width:] - others[:-width]
        best = max(best, _best(caught, missed))
    return best


def _best(false_positive: _Floats, false_negative: _Floats) -> float:
    """Largest epsilon of any rule; rules that err on one side alone cannot be told from luck."""
    # shares are counts over models, so anything below is rounding
    fpr, fnr = (np.where(rate < 1e-9, 0.0, rate) for rate in (false_positive, false_negative))
    if bool(((fpr == 0) & (fnr == 0)).any()):
        return LARGEST
    told = (fpr > 0) & (fnr > 0)
    fpr, fnr = fpr[told], fnr[told]
    best = 0.0
    for one, other in ((fpr, fnr), (fnr, fpr)):
        left = 1 - DELTA - one
        if bool((left > 0).any()):
            best = max(best, float((np.log(left[left > 0]) - np.log(other[left > 0])).max()))
    return best
