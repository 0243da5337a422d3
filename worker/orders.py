"""Which arguments of an order are paths."""

from __future__ import annotations

PATHS = (
    *("out", "source", "weights", "parent", "oracles"),
    *("dataset", "holdout", "forget_samples", "importance", "bank"),
)
