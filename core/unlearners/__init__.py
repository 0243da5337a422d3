"""Unlearning algorithms: a problem and a configuration in, a model out. One file per algorithm."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..registry import discover
from ._registry import FROZEN_BATCHNORM, Need, UnlearnerOptions, unlearners

discover(__name__, list(__path__))

if TYPE_CHECKING:
    UnlearnerConfig = UnlearnerOptions
else:
    UnlearnerConfig = unlearners.union()

__all__ = ["FROZEN_BATCHNORM", "Need", "UnlearnerConfig", "UnlearnerOptions", "unlearners"]
