"""Retraining from scratch.

Source: the definition of unlearning; see Bourtoule et al., IEEE S&P 2021, arXiv:1912.03817.
Differs: a whole new network is built from a seed of its own. Resetting only some layers of the
    parent, as some reference codes do, keeps the forget set in the others.
Cost: the recipe's epochs over the retain set; no extra memory.
Promise: exact. No value of the parent and no record of the forget set enters the result.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import nn

from ..determinism import fresh_seed
from ..errors import MissingEvidence, NothingChanged
from ..problem import Problem
from ..training import fit
from ._fresh import shared_tensors
from ._registry import Need, UnlearnerOptions, unlearners


class RetrainConfig(UnlearnerOptions):
    """Train a new network on the retain set alone, with the recipe of the parent."""

    name: Literal["retrain"] = "retrain"

    exact: ClassVar[bool] = True
    needs: ClassVar[tuple[Need, ...]] = ("retain", "recipe")
    source: ClassVar[str] = "Bourtoule et al., IEEE S&P 2021, arXiv:1912.03817"


@unlearners
def retrain(problem: Problem, config: RetrainConfig) -> nn.Module:  # noqa: ARG001  # no options
    """Return a new network that never saw the forget set.

    Raises:
        MissingEvidence: without retain set or recipe.
        NothingChanged: if the new network starts from a tensor of the parent.
    """
    if problem.retain is None or problem.recipe is None:
        raise MissingEvidence("retraining needs the retain set and the recipe")
    assert not bool(torch.isin(problem.retain.rows, problem.forget.rows).any())
    seed = fresh_seed(problem.seed)
    model = problem.fresh(seed)
    if shared := shared_tensors(problem.model, model):
        raise NothingChanged(
            f"the fresh initialisation shares {len(shared)} tensors with the parent"
        )
    return fit(
        model,
        problem.retain,
        problem.recipe,
        seed=seed,
        device=problem.device,
        masks=problem.masks,
        progress=problem.progress,
        check_time=problem.check_time,
        keeper=problem.keeper,
        team=problem.team,
    )
