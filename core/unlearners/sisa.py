"""Sharded training: train the touched members of an ensemble again.

Source: Bourtoule et al., IEEE S&P 2021, arXiv:1912.03817.
Differs: one slice per shard. Slices save at most a third of a member's training for one deletion,
    (2 R + 1) / (3 R) of it is left with R of them, at the price of R checkpoints that hold the
    forget set. Members are combined by their mean softmax, not by a vote.
Cost: the recipe's epochs over the retained records of each touched shard, which is
    S (1 - (1 - 1/S)^K) of S shards for K records in expectation; no extra memory.
Promise: exact, if the other members were trained by the map of the architecture's key, each on its
    shard alone, and nothing they share (normalisation constants, the recipe) was fitted to the
    forget set. Weights can't prove that; what is checked is that no member changed since
    ``core.sisa`` sealed it. Requesters who see the model and aim their requests by it are outside
    the promise.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import nn

from ..data import Records
from ..errors import InvalidInput, MissingEvidence, NothingChanged
from ..problem import Problem
from ..recipe import Recipe
from ..sisa import (
    broken_seals,
    ensemble_of,
    member_seed,
    seal,
    shards,
    train_member,
)
from ._fresh import shared_tensors
from ._registry import Need, UnlearnerOptions, unlearners


class SISAConfig(UnlearnerOptions):
    """Train the ensemble members whose shards hold forget records again, without these."""

    name: Literal["sisa"] = "sisa"

    exact: ClassVar[bool] = True
    needs: ClassVar[tuple[Need, ...]] = ("retain", "recipe")
    networks: ClassVar[tuple[str, ...]] = ("ensemble",)
    source: ClassVar[str] = "Bourtoule et al., IEEE S&P 2021, arXiv:1912.03817"


@unlearners
def sisa(problem: Problem, config: SISAConfig) -> nn.Module:  # noqa: ARG001  # no options
    """Return the ensemble with new members for the touched ones; the others keep their bits.

    Raises:
        MissingEvidence: without retain set or recipe.
        InvalidInput: ``architecture_invalid`` for another network, ``shards_broken`` if a member
            is not as it was when trained on its shard, or the model is pruned as a whole;
            ``retain_set_too_small`` if a touched shard has too few records left.
        NothingChanged: if a fresh initialisation shares a tensor with the parent.
    """
    if problem.retain is None or problem.recipe is None:
        raise MissingEvidence("sharded retraining needs the retain set and the recipe")
    model = ensemble_of(problem.model)
    if problem.masks:
        raise InvalidInput("shards_broken", "a mask over all members was made with every shard")
    if broken := broken_seals(model):
        raise InvalidInput(
            "shards_broken",
            f"{len(broken)} members were not left as training by shard made them; train the "
            "ensemble by shards again (core.sisa.train): retrain trains its members jointly",
        )
    count = len(model.members)
    touched = shards(problem.forget.rows, count, model.shard_key).unique().tolist()
    of_shard = shards(problem.retain.rows, count, model.shard_key)
    problem.tried.append({"shards": count, "touched": touched})
    for done, shard in enumerate(touched):
        own = problem.retain.take(of_shard == shard)
        model.members[shard] = _again(problem, shard, own, problem.recipe, done, len(touched))
        seal(model, shard)
    problem.progress(1.0, {})
    return model.eval()


def _again(
    problem: Problem, shard: int, own: Records, recipe: Recipe, done: int, of: int
) -> nn.Module:
    assert not bool(torch.isin(own.rows, problem.forget.rows).any())
    start = ensemble_of(problem.fresh(member_seed(problem.seed, shard))).members[shard]
    if shared := shared_tensors(ensemble_of(problem.model).members[shard], start):
        raise NothingChanged(
            f"the fresh initialisation shares {len(shared)} tensors with the parent"
        )
    return train_member(
        problem.fresh,
        shard,
        own,
        recipe,
        seed=problem.seed,
        device=problem.device,
        progress=lambda fraction, metrics: problem.progress((done + fraction) / of, metrics),
        check_time=problem.check_time,
        keeper=problem.keeper,
    )
