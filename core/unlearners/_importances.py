"""Importance of the full set and of the forget set, and which of it need not be measured."""

from __future__ import annotations

from ..data import Records
from ..errors import MissingEvidence
from ..importance import Importance, estimate
from ..problem import Problem
from ..situation import Estimator
from ..stored import is_separable

IMPORTANCE_SHARE = 0.6
"""Share of an unlearner's progress that measuring takes."""


def importances(problem: Problem, estimator: Estimator) -> tuple[Importance, Importance]:
    """Return the importance of the full set (the stored one if it fits) and of the forget set.

    Where stored importance is a mean over batches, that of the forget set is one over batches of
    the same size.

    Raises:
        MissingEvidence: if importance of the full set is neither stored nor can be measured.
    """
    stored = problem.importance
    if stored is not None and _fits(problem, stored, estimator):
        problem.tried.append(
            {"importance": "stored", "estimator": stored.estimator, "stale": stored.stale}
        )
        return stored, _measure(problem, problem.forget, stored.estimator, stored, start=0.0)
    if problem.retain is None:
        raise MissingEvidence("no stored importance fits, and there is no retain set to measure it")
    problem.tried.append({"importance": "measured", "estimator": estimator})
    everything = problem.retain.join(problem.forget)
    share = len(problem.forget) / len(everything)
    full = _measure(problem, everything, estimator, None, start=0.0, end=1 - share / 2)
    return full, _measure(problem, problem.forget, estimator, None, start=1 - share / 2)


def _fits(problem: Problem, stored: Importance, estimator: Estimator) -> bool:
    """Whether it is of that estimator and, where it could be measured anew, of that batch size."""
    alike = is_separable(stored) or stored.batch_size == problem.batch_size
    return stored.estimator == estimator and (alike or problem.retain is None)


def _measure(
    problem: Problem,
    records: Records,
    estimator: Estimator,
    like: Importance | None,
    *,
    start: float,
    end: float = 1.0,
) -> Importance:
    def progress(fraction: float, metrics: dict[str, float]) -> None:
        problem.progress(IMPORTANCE_SHARE * (start + (end - start) * fraction), metrics)

    return estimate(
        problem.model,
        records,
        estimator,
        batch_size=problem.batch_size if like is None or is_separable(like) else like.batch_size,
        device=problem.device,
        seed=problem.seed,
        precision="fp32" if like is None else like.precision,
        progress=progress,
        check_time=problem.check_time,
    )
