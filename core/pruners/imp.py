"""Iterative magnitude pruning: lottery tickets.

Source: Frankle and Carbin, ICLR 2019, arXiv:1803.03635; IMP of Jia et al., NeurIPS 2023,
    arXiv:2304.04934.
Differs: rewinds to the initialisation; the reference code rewinds to epoch 8, and that checkpoint
    has seen the forget set. The model given is not used, so neither mask nor weights know it.
Cost: ``rounds`` + 1 trainings on the retain set.
Promise: density (1 - rate) ** rounds. Mask and weights rest on the records given alone.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from ..checkpoints import once
from ..masks import keep_largest, prunable, size
from ._registry import Need, Pruned, PrunerOptions, Pruning, finished, pruners


class IMPConfig(PrunerOptions):
    """Train, prune a share of what is left, rewind to the start; several times."""

    name: Literal["imp"] = "imp"
    rounds: int = Field(5, ge=1, le=30, description="Rounds of training and pruning.")
    rate: float = Field(
        0.2, gt=0, lt=1, description="Share of the weights still there that a round prunes."
    )
    epochs: int | None = Field(
        None, ge=1, le=1000, description="Epochs of each training. Left out: those of the recipe."
    )

    source: ClassVar[str] = "Frankle and Carbin, ICLR 2019, arXiv:1803.03635"

    @property
    def needs(self) -> tuple[Need, ...]:
        """It trains from the start, so it needs both."""
        return ("retain", "recipe")


@pruners
def imp(pruning: Pruning, config: IMPConfig) -> Pruned:
    """Return the ticket, trained unless the caller does that.

    Raises:
        MissingEvidence: without records or recipe.
        Infeasible: if a layer would lose all its weights.
    """
    trainings = config.rounds + pruning.recover
    masks: dict[str, Tensor] | None = None
    for number in range(config.rounds):
        part = number / trainings, (number + 1) / trainings
        pruned = partial(_round, pruning, config, number, part, masks)
        masks = dict(once(pruning.keeper, f"round {number}", pruned))
    assert masks is not None
    model = pruning.start()
    if pruning.recover:
        part = config.rounds / trainings, 1.0
        model = pruning.train(model, part=part, masks=masks, epochs=config.epochs)
    return finished(pruning, model, masks)


def _round(
    pruning: Pruning,
    config: IMPConfig,
    number: int,
    part: tuple[float, float],
    masks: dict[str, Tensor] | None,
) -> dict[str, Tensor]:
    """Train from the start with the masks of the round before, and return those of this one."""
    start = pruning.start()
    model = pruning.train(start, part=part, masks=masks, epochs=config.epochs, keep=False)
    scores = {name: weight.detach().abs() for name, weight in prunable(model).items()}
    # below every weight that is still there, zero or not
    scores = {
        name: score if masks is None else score.masked_fill(~masks[name].to(score.device), -1.0)
        for name, score in scores.items()
    }
    density = (1 - config.rate) ** (number + 1)
    return keep_largest(scores, round(size(scores) * density))
