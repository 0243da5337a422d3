"""Fine-tuning on wrong labels, with the retain set as regulariser: the conventional form.

Source: the form CE-FT that Ding et al., TMLR 2025, arXiv:2410.03833, set their own against; it is
    the loss of Fan et al., ICLR 2024, arXiv:2310.12508, without the mask.
Differs: a wrong label is drawn once per record and never the true one; for a class request never a
    forgotten class. The paper's step sizes are not known to us; ours suit the parent's optimizer.
Cost: per step one forward and backward pass over a forget and a retain batch, ``epochs`` passes
    over the retain set at most; momentum, one copy of the model.
Promise: approximate. The forget term leads, so that a small ``alpha`` costs utility.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field
from torch import nn
from torch.nn import functional as F

from ..problem import Problem
from ..relabel import wrong_labels
from ._descent import DescentOptions
from ._registry import Need, unlearners
from ._regularised import regularised


class CEFTConfig(DescentOptions):
    """Train the forget set on wrong labels, regularised by the retain set."""

    name: Literal["ce_ft"] = "ce_ft"
    epochs: int = Field(5, ge=1, le=100, description="Passes over the retain set at most.")
    alpha: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Weight of the retain term against 1 for the forget term; worth trying: 0.01, "
        "0.05, 0.1, 0.5, 1. At 1 this is random_label of form paired.",
    )

    needs: ClassVar[tuple[Need, ...]] = ("retain",)
    source: ClassVar[str] = "Ding et al., TMLR 2025, arXiv:2410.03833 (CE-FT)"


@unlearners
def ce_ft(problem: Problem, config: CEFTConfig) -> nn.Module:
    """Train, and return, ``problem.model``.

    Raises:
        MissingEvidence: without a retain set.
        Infeasible: if there is no wrong label to draw.
    """
    labels = wrong_labels(
        problem.forget.labels, problem.num_classes, problem.seed, problem.forgotten_classes
    )
    return regularised(
        problem,
        config,
        forget=replace(problem.forget, labels=labels),
        forget_loss=F.cross_entropy,
        weight_retain=config.alpha,
    )
