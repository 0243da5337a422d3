"""Fine-tuning on the retain set with an l1 penalty that drives weights to zero.

Source: Jia et al., NeurIPS 2023, arXiv:2304.04934 (l1-sparse MU).
Differs: the penalty is on the weights of convolution and linear layers (the reference code: on
    every parameter, normalisation gains and biases too); the last ``no_l1_epochs`` must be fewer
    than all (there: as many means a constant penalty); ``prox`` steps by soft thresholding, scaled
    for momentum, which gives exact zeros where a subgradient only gives small numbers. Batch norm
    as in ``fine_tune``.
Cost: ``epochs`` forward and backward passes over the retain set; momentum, one copy of the model.
Promise: approximate. Small weights fade, and the forget set with them as far as it lives there;
    utility is paid for it, more with a larger ``gamma``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from ..data import num_batches
from ..problem import Problem
from ..registry import misfit
from ..team import Team
from ._descent import need_retain
from ._l1 import l1_norm, penalised, shrink
from ._registry import Need, UnlearnerOptions, unlearners
from ._tuning import MOMENTUM, tune


class L1SparseConfig(UnlearnerOptions):
    """Go on training with the retain set alone, and with a price on every weight."""

    name: Literal["l1_sparse"] = "l1_sparse"
    epochs: int = Field(10, ge=1, le=100, description="Passes over the retain set.")
    lr: float = Field(0.01, gt=0, le=1, description="Learning rate of SGD with momentum 0.9.")
    gamma: float = Field(
        5e-4, ge=0, le=1, description="Price of a weight's absolute value; 0 is fine_tune."
    )
    schedule: Literal["constant", "growing", "decay"] = Field(
        "decay",
        description="The price over the epochs: constant, growing from a first share up to gamma, "
        "or falling linearly from gamma.",
    )
    no_l1_epochs: int = Field(
        0, ge=0, le=99, description="Last epochs without a price, fewer than epochs."
    )
    prox: bool = Field(
        False, description="Soft thresholding after each step instead of a term of the loss."
    )
    scope: Literal["weights", "all"] = Field(
        "weights",
        description="What has a price: weights of convolution and linear layers, or every "
        "parameter (all).",
    )

    needs: ClassVar[tuple[Need, ...]] = ("retain",)
    source: ClassVar[str] = "Jia et al., NeurIPS 2023, arXiv:2304.04934"

    @model_validator(mode="after")
    def _some_epoch_has_a_price(self) -> Self:
        if self.no_l1_epochs >= self.epochs:
            raise misfit(self, "no_l1_epochs", "no_l1_epochs must be fewer than epochs")
        return self

    def price(self, epoch: int) -> float:
        """Return gamma_t of this epoch, counted from 0.

        Example:
            >>> falling = L1SparseConfig(gamma=1, epochs=5, no_l1_epochs=1)
            >>> [falling.price(epoch) for epoch in range(5)]
            [1.0, 0.75, 0.5, 0.25, 0.0]
        """
        priced = self.epochs - self.no_l1_epochs
        if epoch >= priced:
            return 0.0
        match self.schedule:
            case "constant":
                return self.gamma
            case "growing":
                return self.gamma * (epoch + 1) / priced
            case "decay":
                return self.gamma * (1 - epoch / priced)


@unlearners
def l1_sparse(problem: Problem, config: L1SparseConfig) -> nn.Module:
    """Train, and return, ``problem.model``.

    Raises:
        MissingEvidence: without a retain set.
        Diverged: if a loss or a weight is not finite.
    """
    every = num_batches(len(need_retain(problem)), problem.batch_size)
    weights = penalised(problem.model, config.scope)
    done = 0

    def on_start(steps: int) -> None:
        nonlocal done
        done = steps

    def term(_model: nn.Module, _x: Tensor, _y: Tensor, logits: Tensor) -> Tensor:
        price = config.price(done // every)
        return price * l1_norm(weights) if price else logits.new_zeros(())

    def after_step(steps: int, rate: float) -> None:
        nonlocal done
        if config.prox:
            # In the long run momentum moves 1 / (1 - MOMENTUM) times as far as one gradient, and
            # the price must keep pace with it.
            shrink(weights, rate / (1 - MOMENTUM) * config.price(done // every))
        done = steps

    priced = config.gamma > 0
    # Thresholds come after the step, which the other processes of a training do not share.
    alone = replace(problem, team=Team()) if priced and config.prox else problem
    return tune(
        alone,
        epochs=config.epochs,
        lr=config.lr,
        extra_loss=term if priced and not config.prox else None,
        on_start=on_start,
        after_step=after_step if priced else None,
    )
