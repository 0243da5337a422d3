"""Selecting and shrinking the weights that the forget set leans on most.

With importance F of the full set and F_f of the forget set, a selected weight is multiplied by
beta = min(lam F / F_f, 1). Where both are 0 a weight is never selected; where only F is 0, beta
is 0.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .masks import Masks, num_pruned, unpruned


class Dampening:
    """The parent's weights, how far each would be shrunk, and in which order they are selected.

    Args:
        model: its parameters are the parent's now, and are overwritten by ``select_*``.
        full: importance of the full set, per parameter name.
        forget: importance of the forget set, per parameter name.
        lam: dampening constant; larger shrinks less.
        most: the largest fraction of all weights that is ever selected.
        masks: of a pruned model; pruned weights are never selected, nor counted as weights.
    """

    def __init__(
        self,
        model: nn.Module,
        full: Mapping[str, Tensor],
        forget: Mapping[str, Tensor],
        lam: float,
        *,
        most: float = 1.0,
        masks: Masks | None = None,
    ) -> None:
        self._parameters = [
            (name, p) for name, p in model.named_parameters() if p.is_floating_point()
        ]
        self._parent = self._flat({name: p.detach() for name, p in self._parameters})
        self._full = self._flat(full).double()
        # a zero without a second tensor under it has a gradient like any other weight
        self._forget = self._flat(unpruned(forget, masks)).double()
        self._lam = lam
        self.size = len(self._parent) - num_pruned(masks, [name for name, _ in self._parameters])
        """Number of weights that are not pruned, selectable or not."""
        self.foreign = int(((self._full == 0) & (self._forget > 0)).sum())
        """Number of weights that only the forget set leans on, which cannot be where it is part of
        the full set; selected, they become 0."""
        ratio = torch.where(self._forget > 0, self._forget / self._full, 0.0)
        self.selectable = int((ratio > 0).sum())
        count = min(self.selectable, max(1, round(most * self.size)))
        self._order = ratio.topk(count).indices

    def beta(self, index: Tensor) -> Tensor:
        """Factors in [0, 1] for the weights at these positions."""
        return (self._lam * self._full[index] / self._forget[index]).clamp(0, 1)

    def select_top(self, count: int) -> int:
        """Shrink the ``count`` weights of largest ratio; return how many could be selected."""
        chosen = self._order[:count]
        self._write(chosen)
        return len(chosen)

    def select_above(self, alpha: float) -> int:
        """Shrink the weights with F_f > alpha F; return how many."""
        chosen = (self._forget > alpha * self._full).nonzero().flatten()
        self._write(chosen)
        return len(chosen)

    @torch.no_grad()
    def _write(self, chosen: Tensor) -> None:
        values = self._parent.clone()
        values[chosen] *= self.beta(chosen).to(values.dtype)
        start = 0
        for _, parameter in self._parameters:
            end = start + parameter.numel()
            parameter.copy_(values[start:end].view(parameter.shape))
            start = end

    def _flat(self, values: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([values[name].reshape(-1).cpu() for name, _ in self._parameters])
