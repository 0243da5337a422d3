"""Masks of pruned models: which weights must stay exactly zero.

A pruned model is a plain model with zeros in plain tensors. There is no second tensor under a mask
that could still hold what was trained on forgotten records.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from .classifier import LAYERS, classifier, parts
from .errors import Diverged, Infeasible

Masks = Mapping[str, Tensor]
"""bool per parameter name, in the parameter's shape; False is pruned. A name left out is dense."""

PRUNED_FROM = 0.1
"""Share of exact zeros in a layer from which on a model was pruned: training leaves none, rounding
to eight bits a few in a hundred."""


@torch.no_grad()
def apply_masks(model: nn.Module, masks: Masks | None) -> None:
    """Zero the pruned weights of ``model`` in place; the others keep their bits."""
    if masks is None:
        return
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        parameters[name].masked_fill_(~mask.to(parameters[name].device), 0)


def holds(model: nn.Module, masks: Masks) -> bool:
    """Whether every pruned weight is exactly zero, in a plain tensor."""
    if prune.is_pruned(model):
        return False
    parameters = dict(model.named_parameters())
    return not any(
        bool(parameters[name].detach()[~mask.to(parameters[name].device)].any())
        for name, mask in masks.items()
    )


def layer_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Weights of all convolution and linear layers by parameter name; tied ones once."""
    owned = {id(m.weight) for m in model.modules() if isinstance(m, LAYERS)}
    return {name: p for name, p in model.named_parameters() if id(p) in owned}


def prunable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Weights of convolution and linear layers but the classifier, by parameter name.

    In an ensemble every member has one.

    Raises:
        Infeasible: if the classifier is all there is.
    """
    last = {id(classifier(part)[1].weight) for part in parts(model)}
    found = {name: w for name, w in layer_weights(model).items() if id(w) not in last}
    if not found:
        raise Infeasible("the network has no layer to prune but its classifier")
    return found


def zeros(model: nn.Module) -> dict[str, Tensor]:
    """Return the exact zeros of convolution and linear weights, the classifier's too, as masks."""
    masks = {name: weight.detach() != 0 for name, weight in layer_weights(model).items()}
    return {name: mask for name, mask in masks.items() if not bool(mask.all())}


def of_pruned(model: nn.Module) -> dict[str, Tensor]:
    """Return the zeros of a model that was pruned before, as masks; none of a dense one.

    It was if any layer but the classifier has at least ``PRUNED_FROM`` of them.
    """
    try:
        layers = prunable(model)
    except Infeasible:
        return {}
    masks = zeros(model)
    shares = (sparsity({name: masks[name]}) for name in layers if name in masks)
    return masks if max(shares, default=0.0) >= PRUNED_FROM else {}


def keep_largest(
    scores: Mapping[str, Tensor], count: int, *, one_each: bool = False
) -> dict[str, Tensor]:
    """Return masks that keep the ``count`` largest of all scores; of equal ones the first.

    Args:
        scores: by parameter name.
        count: of all layers together.
        one_each: keep the largest of every layer, whatever the others have.

    Raises:
        Diverged: if a score is not finite.
        Infeasible: if a layer would lose all its weights, or ``count`` is below one.

    Example:
        >>> keep_largest({"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([2.0])}, 2)
        {'a': tensor([ True, False]), 'b': tensor([True])}
    """
    flat = torch.cat([score.flatten() for score in scores.values()])
    if not bool(torch.isfinite(flat).all()):
        raise Diverged("a pruning score is not finite")
    if count < 1:
        raise Infeasible("the sparsity leaves no weight at all")
    if one_each:
        sizes = torch.tensor([0, *(score.numel() for score in scores.values())])
        for start, score in zip(sizes.cumsum(0).tolist(), scores.values(), strict=False):
            flat[start + int(score.argmax())] = torch.inf
    least = flat.kthvalue(len(flat) - count + 1).values
    keep = flat > least
    ties = (flat == least).nonzero().flatten()
    keep[ties[: count - int(keep.sum())]] = True
    parts = keep.split([score.numel() for score in scores.values()])
    masks = {
        name: part.view(score.shape)
        for (name, score), part in zip(scores.items(), parts, strict=True)
    }
    if empty := [name for name, mask in masks.items() if not bool(mask.any())]:
        raise Infeasible(
            f"the sparsity leaves {len(empty)} layers without any weight, such as {empty[0]}"
        )
    return masks


def kept(total: int, sparsity: float) -> int:
    """Number of weights that a sparsity leaves."""
    return total - round(total * sparsity)


def size(tensors: Mapping[str, Tensor]) -> int:
    """Number of values in all tensors."""
    return sum(tensor.numel() for tensor in tensors.values())


def sparsity(masks: Masks) -> float:
    """Share of pruned weights among those that the masks are for."""
    return 1 - sum(int(mask.sum()) for mask in masks.values()) / size(masks)


def share_of_zeros(model: nn.Module) -> float:
    """Share of exact zeros among all convolution and linear weights."""
    layers = layer_weights(model)
    return num_pruned(zeros(model), layers) / size(layers)


def both(masks: Masks, others: Masks | None) -> dict[str, Tensor]:
    """Keep what both masks keep."""
    joined = dict(masks)
    for name, mask in (others or {}).items():
        joined[name] = joined[name] & mask.to(joined[name].device) if name in joined else mask
    return joined


def unpruned(values: Mapping[str, Tensor], masks: Masks | None) -> dict[str, Tensor]:
    """Return the values with zeros where a weight is pruned."""
    found = dict(values)
    for name, mask in (masks or {}).items():
        if name in found:
            found[name] = found[name].masked_fill(~mask.to(found[name].device), 0)
    return found


def num_pruned(masks: Masks | None, names: Iterable[str]) -> int:
    """Number of pruned weights among the parameters with these names."""
    return sum(int((~masks[name]).sum()) for name in names if name in masks) if masks else 0
