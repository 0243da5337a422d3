"""One step of the optimiser: alone, or together with other processes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import batchnorm
from .device import autocast
from .group import Group
from .pieces import MOST_PIECES
from .recipe import Recipe

ExtraLoss = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]
"""Called with model, inputs, labels and logits; its result is added to the loss."""


class Step:
    """One step of the optimiser, in as few pieces of the batch as the memory allows.

    Args:
        model: in training mode.
        optimizer: of its parameters.
        recipe: says precision and label smoothing.
        device: where the model is.
        extra_loss: added to the cross-entropy of the batch.
        group: the other processes that have a share of each batch; the step is that of the whole.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        recipe: Recipe,
        device: torch.device,
        extra_loss: ExtraLoss | None = None,
        group: Group | None = None,
    ) -> None:
        self.model, self.optimizer, self.recipe = model, optimizer, recipe
        self.device, self.extra_loss, self.group = device, extra_loss, group
        self.pieces = 1

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Learn from a batch, or from this process's share of it; return the loss of the whole."""
        while (loss := self._gradient(x, y)) is None:
            self.pieces *= 2
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        if self.group is not None:
            self._agree(self.group, loss, len(x))
        self.optimizer.step()
        return loss

    def _agree(self, group: Group, loss: Tensor, count: int) -> None:
        """Take the mean of loss, gradients and batch norm's running statistics over the group."""
        # A parameter that the network does not use has no gradient, in any of the processes.
        each = (p.grad for group_ in self.optimizer.param_groups for p in group_["params"])
        gradients = [gradient for gradient in each if gradient is not None]
        group.average([loss, *gradients, *batchnorm.moving(self.model)], count)

    def _gradient(self, x: Tensor, y: Tensor) -> Tensor | None:
        """Compute the gradient and return the loss; None if there was too little memory."""
        self.optimizer.zero_grad(set_to_none=True)
        try:
            if self.pieces == 1:
                return self._backward(x, y, 1.0)
            parts = zip(x.tensor_split(self.pieces), y.tensor_split(self.pieces), strict=True)
            return torch.stack([self._backward(a, b, len(a) / len(x)) for a, b in parts]).sum()
        except torch.OutOfMemoryError:
            if self.pieces >= MOST_PIECES or len(x) < 4 * self.pieces:
                raise
        return None

    def _backward(self, x: Tensor, y: Tensor, share: float) -> Tensor:
        with autocast(self.device, self.recipe.precision):
            logits = self.model(x)
            loss = F.cross_entropy(logits, y, label_smoothing=self.recipe.label_smoothing)
            if self.extra_loss is not None:
                loss = loss + self.extra_loss(self.model, x, y, logits)
        loss = loss if share == 1.0 else loss * share
        loss.backward()
        return loss.detach()
