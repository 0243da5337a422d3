"""The zeros that a model already has.

Source: composition rules for pruned models; Jia et al., NeurIPS 2023, arXiv:2304.04934.
Differs: no mask is stored beside the weights; exact zeros of convolution and linear weights, the
    classifier's included, are the mask.
Cost: one look at the weights.
Promise: the mask is the parent's own, made from everything the parent was trained on.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from .. import masks
from ..errors import Infeasible
from ._registry import Pruned, PrunerOptions, Pruning, finished, pruners


class ZerosConfig(PrunerOptions):
    """Keep the zeros of a model that was pruned before."""

    name: Literal["zeros"] = "zeros"

    keeps_parent: ClassVar[bool] = True
    source: ClassVar[str] = "Jia et al., NeurIPS 2023, arXiv:2304.04934"


@pruners
def zeros(pruning: Pruning, config: ZerosConfig) -> Pruned:  # noqa: ARG001  # no options
    """Return the model as it is, with the mask of its zeros.

    Raises:
        Infeasible: if no weight is zero, or the model is freshly initialised.
    """
    if not pruning.trained:
        raise Infeasible("a fresh initialisation has no zeros of its own to keep")
    model = pruning.model.to(pruning.device)
    found = masks.zeros(model)
    if not found:
        raise Infeasible("the model has no zero weight to keep: it was not pruned before")
    return finished(pruning, model, found)
