"""How far apart the predictions of two models are, record by record.

Shapes: logits_NC has one row per record and one column per class. Everything is computed in
float64 on the CPU.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from scipy import special
from torch import Tensor

from .errors import MissingEvidence
from .intervals import Estimate, need


def jensen_shannon(first_NC: Tensor, second_NC: Tensor) -> Tensor:
    """Jensen-Shannon divergence of two predictions in bits: 0 where equal, 1 where disjoint.

    Source: Lin 1991, IEEE Transactions on Information Theory 37(1).

    Example:
        >>> sure, other = torch.tensor([[0.0, -1e4]]), torch.tensor([[-1e4, 0.0]])
        >>> jensen_shannon(sure, sure).item(), jensen_shannon(sure, other).item()
        (0.0, 1.0)
    """
    log_p = first_NC.double().log_softmax(dim=1)
    log_q = second_NC.double().log_softmax(dim=1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    halves = [
        torch.where(x.exp() == 0, 0.0, x.exp() * (x - log_m)).sum(dim=1) for x in (log_p, log_q)
    ]
    return ((halves[0] + halves[1]) / (2 * math.log(2))).clamp(0, 1)


def activation_distance(first_NC: Tensor, second_NC: Tensor) -> Tensor:
    """Euclidean distance of two predicted distributions, at most the square root of two.

    Source: Golatkar et al. 2021, arXiv:2012.13431.

    Example:
        >>> sure, other = torch.tensor([[0.0, -1e4]]), torch.tensor([[-1e4, 0.0]])
        >>> round(activation_distance(sure, other).item(), 4)
        1.4142
    """
    apart = first_NC.double().softmax(dim=1) - second_NC.double().softmax(dim=1)
    return apart.square().sum(dim=1).sqrt()


class Weighted(NamedTuple):
    """Values per record with weights that sum to one."""

    values: Tensor
    weights: Tensor

    @property
    def mean(self) -> float:
        """Weighted mean."""
        return float((self.values.double() * self.weights).sum())

    @property
    def variance(self) -> float:
        """Variance of the weighted mean; infinite for one record, which tells nothing of it."""
        apart = (self.values.double() - self.mean).square()
        left = 1 - float(self.weights.square().sum())
        return float((self.weights.square() * apart).sum()) / left if left > 0 else math.inf


def alike(values: Tensor) -> Weighted:
    """Give all values the same weight."""
    need(len(values), "values")
    return Weighted(values, torch.full((len(values),), 1 / len(values), dtype=torch.float64))


def mean_interval(sample: Weighted, *, level: float = 0.90) -> Estimate:
    """Mean with its interval by the central limit theorem.

    Raises:
        MissingEvidence: if it is not finite.

    Example:
        >>> [round(x, 3) for x in mean_interval(alike(torch.tensor([0.0, 1.0] * 50)))]
        [0.5, 0.417, 0.583]
    """
    return _around(sample.mean, sample.variance, level)


def mean_difference(first: Weighted, second: Weighted, *, level: float = 0.90) -> Estimate:
    """Difference of two means of independent records, with its interval."""
    return _around(first.mean - second.mean, first.variance + second.variance, level)


def ends(estimate: Estimate) -> tuple[float, float] | None:
    """Return the interval, or None where it has no end."""
    return (estimate.low, estimate.high) if math.isfinite(estimate.high) else None


def _around(value: float, variance: float, level: float) -> Estimate:
    if not math.isfinite(value):
        raise MissingEvidence("some predictions are not a number")
    half = float(special.ndtri(0.5 + level / 2)) * math.sqrt(variance)
    return Estimate(value, value - half, value + half)
