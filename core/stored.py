"""Stored importance that came from outside, and what becomes of it once something is forgotten.

A team that keeps its training data to itself sends the importance of the full set along with the
weights. It makes the file where the data is::

    made = importance.estimate(
        model, records, "fisher_persample", batch_size=256, device=device, seed=0
    )
    importance.save(made, path)

with ``records`` a ``core.data.Records`` of all training records, in the preprocessing of the model.

Source: Foster et al. 2024, arXiv:2308.07707, for what it is used for.
"""

from __future__ import annotations

import re
from dataclasses import replace

import torch
from torch import nn

from . import weights
from .errors import InvalidInput
from .importance import Importance

_DIGEST = re.compile(r"[0-9a-f]{64}")


def check(stored: Importance, model: nn.Module) -> None:
    """Refuse importance that is not one of this model.

    Raises:
        InvalidInput: ``importance_mismatch`` if it was made for other weights;
            ``importance_invalid`` if its origin or its values can't be true.
    """
    if stored.weights != weights.digest(model):
        raise InvalidInput("importance_mismatch", "the importance was made for other weights")
    expected = {n: p.shape for n, p in model.named_parameters() if p.is_floating_point()}
    if {name: value.shape for name, value in stored.values.items()} != expected:
        raise InvalidInput(
            "importance_invalid", "names or shapes are not those of the model's parameters"
        )
    for name, least in (("n", 1), ("batch_size", 1), ("stale", 0)):
        if type(number := getattr(stored, name)) is not int or number < least:
            raise InvalidInput("importance_invalid", f"{name} must be a whole number >= {least}")
    if not isinstance(stored.data, str) or not _DIGEST.fullmatch(stored.data):
        raise InvalidInput("importance_invalid", "data must be the digest of the records")
    if stored.precision not in ("fp32", "bf16"):
        raise InvalidInput("importance_invalid", "precision must be fp32 or bf16")
    for name, value in stored.values.items():
        if value.dtype != torch.float32 or not bool((torch.isfinite(value) & (value >= 0)).all()):
            raise InvalidInput(
                "importance_invalid", f"{name} must hold finite numbers of float32, none below 0"
            )


def is_separable(found: Importance) -> bool:
    """Whether records can be subtracted from it: from means of squares per record alone."""
    return found.estimator in ("fisher_persample", "fisher_model")


def without(full: Importance, forget: Importance, model: nn.Module) -> Importance | None:
    """Return the importance of the records that stay, for the model that forgot the others.

    Both are of the parent: for its weights the result is exact, for the new ones it is an estimate
    that is one request staler. None where records can't be subtracted: only per-record means can
    be, and something must stay.

    Args:
        full: of all records.
        forget: of the forgotten ones, a part of them.
        model: the new one.

    Example:
        With F = mean over N records and f = mean over n of them, (N F - n f) / (N - n).
    """
    if not is_separable(full) or forget.estimator != full.estimator or full.n <= forget.n:
        return None
    left = full.n - forget.n
    values = {
        name: ((full.n * value.double() - forget.n * forget.values[name].double()) / left)
        .clamp(min=0)
        .float()
        for name, value in full.values.items()
    }
    return replace(full, values=values, n=left, weights=weights.digest(model), stale=full.stale + 1)
