"""Fine-tuning on the retain set.

Source: the baseline FT of Jia et al., NeurIPS 2023, arXiv:2304.04934; step size and epochs after
    Foster et al., AAAI 2024, arXiv:2308.07707.
Differs: batch norm's running statistics are measured anew on retained records afterwards (unless
    the policy says otherwise), because momentum averages still hold the forget set.
    ``schedule: one_cycle`` raises the rate to ``lr`` and lets it fall to almost nothing: a peak
    above that of the training shakes out what was learned by heart, which a small constant rate
    leaves where it is, and the fall brings the accuracy back. Images are cropped and flipped
    meanwhile, because relearning them as they were costs accuracy that never comes back.
Cost: ``epochs`` forward and backward passes over the retain set; momentum, one copy of the model.
Promise: approximate. The forget set fades only as far as the retain set overwrites it.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import nn

from ..data import Augmentation
from ..problem import Problem
from ..recipe import SGD
from ._registry import Need, UnlearnerOptions, unlearners
from ._tuning import tune

EPOCHS = 5
LR = 0.02
CYCLE_PEAK = 0.2
CYCLE_SHARE = 1 / 3
CYCLE_RISE = 2.0
"""Peak over the recipe's rate."""
CYCLE_AUGMENT: tuple[Augmentation, ...] = ("crop", "flip")


class FineTuneConfig(UnlearnerOptions):
    """Go on training with the retain set alone."""

    name: Literal["fine_tune"] = "fine_tune"
    schedule: Literal["constant", "one_cycle"] = Field(
        "constant", description="The same rate throughout, or up to lr and down to almost nothing."
    )
    epochs: int | None = Field(
        None,
        ge=1,
        le=100,
        description="Passes over the retain set. Left out: 5, or a third of the recipe's for a "
        "cycle.",
    )
    lr: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Learning rate of SGD with momentum 0.9; the peak of a cycle. Left out: 0.02, "
        "or twice the recipe's for a cycle.",
    )
    augment: tuple[Augmentation, ...] | None = Field(
        None,
        max_length=2,
        description="Random changes of images. Left out: the recipe's, or crop and flip for a "
        "cycle; [] suits images whose mirror image means something else.",
    )

    needs: ClassVar[tuple[Need, ...]] = ("retain",)
    source: ClassVar[str] = "Jia et al., NeurIPS 2023, arXiv:2304.04934"


@unlearners
def fine_tune(problem: Problem, config: FineTuneConfig) -> nn.Module:
    """Train, and return, ``problem.model``.

    Raises:
        MissingEvidence: without a retain set.
    """
    epochs, lr, augment = config.epochs or EPOCHS, config.lr or LR, config.augment
    is_cycle = config.schedule == "one_cycle"
    if is_cycle:
        epochs, lr = _cycle(problem, config)
        if augment is None and problem.forget.images.ndim == 4:
            augment = CYCLE_AUGMENT
    return tune(problem, epochs=epochs, lr=lr, cycle=is_cycle, augment=augment)


def _cycle(problem: Problem, config: FineTuneConfig) -> tuple[int, float]:
    """Epochs and peak rate: as asked for, else from the recipe."""
    known, epochs, peak = problem.recipe, EPOCHS, CYCLE_PEAK
    if known is not None:
        epochs = max(1, round(CYCLE_SHARE * known.epochs))
        if isinstance(known.optimizer, SGD):
            peak = min(1.0, CYCLE_RISE * known.optimizer.lr)
    return config.epochs or epochs, config.lr or peak
