"""Fine-tuning on the retain set.

Source: the baseline FT of Jia et al., NeurIPS 2023, arXiv:2304.04934; step size and epochs after
    Foster et al., AAAI 2024, arXiv:2308.07707.
Differs: batch norm's running statistics are measured anew on retained records afterwards (unless
    the policy says otherwise), because momentum averages still hold the forget set.
    ``schedule: one_cycle`` raises the rate to ``lr`` and lets it fall to almost nothing, and starts
    from weights that are shrunk towards a new initialisation (shrink and perturb of Ash and Adams,
    NeurIPS 2020, arXiv:1910.08475): that loses what was learned by heart, which a small constant
    rate leaves where it is, and little of what many records agree on. Images are flipped
    meanwhile, because relearning them as they were costs accuracy that never comes back. Where
    batch norm keeps the parent's statistics (``bn_policy: frozen``) nothing is shrunk: they are not
    those of the weights that it would start from.
Cost: ``epochs`` forward and backward passes over the retain set; momentum, one copy of the model,
    and for a moment one more.
Promise: approximate. The forget set fades only as far as the retain set overwrites it.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from .. import batchnorm
from ..data import Augmentation
from ..determinism import fresh_seed
from ..errors import Infeasible
from ..problem import Problem
from ..recipe import SGD
from ._registry import FROZEN_BATCHNORM, Need, UnlearnerOptions, unlearners
from ._tuning import tune

EPOCHS = 5
LR = 0.02
CYCLE_PEAK = 0.1
"""Where the recipe's rate is not known, or not that of SGD."""
CYCLE_SHARE = 1 / 4
CYCLE_KEEP = 0.5
CYCLE_AUGMENT: tuple[Augmentation, ...] = ("flip",)


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
        description="Passes over the retain set. Left out: 5, or a quarter of the recipe's for a "
        "cycle.",
    )
    lr: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Learning rate of SGD with momentum 0.9; the peak of a cycle. Left out: 0.02, "
        "or the recipe's for a cycle, 0.1 where that is not known or not of SGD.",
    )
    keep: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Share of the weight matrices that is kept at the start; a new initialisation "
        "has the rest. Left out: all, or half for a cycle. With frozen batch norm all of it is.",
    )
    augment: tuple[Augmentation, ...] | None = Field(
        None,
        max_length=2,
        description="Random changes of images. Left out: the recipe's, or flip for a cycle; [] "
        "suits images whose mirror image means something else.",
    )

    needs: ClassVar[tuple[Need, ...]] = ("retain",)
    source: ClassVar[str] = "Jia et al., NeurIPS 2023, arXiv:2304.04934"

    @property
    def fits_frozen_batchnorm(self) -> bool:
        """Not where other weights are asked for."""
        return self.keep in (None, 1.0)


@unlearners
def fine_tune(problem: Problem, config: FineTuneConfig) -> nn.Module:
    """Train, and return, ``problem.model``.

    Raises:
        MissingEvidence: without a retain set.
        Infeasible: if batch norm is frozen and ``keep`` asks for other weights.
    """
    if config.schedule == "constant":
        epochs, lr, augment = config.epochs or EPOCHS, config.lr or LR, config.augment
    else:
        epochs, lr, augment = _cycle(problem, config)
    _perturb(problem, config)
    is_cycle = config.schedule == "one_cycle"
    return tune(problem, epochs=epochs, lr=lr, cycle=is_cycle, augment=augment)


def _cycle(
    problem: Problem, config: FineTuneConfig
) -> tuple[int, float, tuple[Augmentation, ...] | None]:
    """Epochs, peak rate and augmentation: as asked for, else from recipe and records."""
    known, epochs, peak, augment = problem.recipe, EPOCHS, CYCLE_PEAK, config.augment
    if known is not None:
        epochs = max(1, round(CYCLE_SHARE * known.epochs))
        if isinstance(known.optimizer, SGD):
            peak = known.optimizer.lr
    if augment is None and problem.forget.images.ndim == 4:
        augment = CYCLE_AUGMENT
    return config.epochs or epochs, config.lr or peak, augment


@torch.no_grad()
def _perturb(problem: Problem, config: FineTuneConfig) -> None:
    """Replace a share of every weight matrix by that of a new network; biases and scales stay."""
    keep = config.keep
    if keep is None:
        keep = CYCLE_KEEP if config.schedule == "one_cycle" else 1.0
    if keep == 1.0:
        return
    if problem.bn_policy == "frozen" and batchnorm.has_batchnorm(problem.model):
        if not config.fits_frozen_batchnorm:
            raise Infeasible(FROZEN_BATCHNORM)
        problem.tried.append({"keep": 1.0, "batch_norm": "frozen: statistics of these weights"})
        return
    fresh = dict(problem.fresh(fresh_seed(problem.seed)).named_parameters())
    for name, weight in problem.model.named_parameters():
        if weight.ndim > 1 and weight.requires_grad:
            weight.lerp_(fresh[name].to(weight.device), 1.0 - keep)
