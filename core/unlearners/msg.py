"""MSG: start the weights anew that tell forget and retain set apart least, then fine-tune.

Source: second place of the NeurIPS 2023 unlearning challenge, as described and ranked by Cadet et
    al., arXiv:2410.01276.
Differs: linear layers are treated like convolutional ones, so that any network can be (the code of
    Cadet et al. leaves them out), with Kaiming's fan in; pruned weights stay pruned. The rate rises
    and falls by steps, not by epochs, and falls along a cosine (there: a straight line); its peak
    is 0.01 (there: 0.001). Gradients are measured without augmentation, in eval mode.
Cost: one forward and backward pass over the forget set and as many retained records, then
    ``epochs`` passes over the retain set; momentum, and two values per weight.
Promise: approximate. Weights that are kept carry the forget set on, and move at a tenth of the
    rate.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from .. import batchnorm
from ..data import Records
from ..determinism import generator
from ..problem import Problem
from ..recipe import SGD, Cosine, Recipe
from ..training import fit
from ._batchnorm import settle
from ._descent import need_retain, precision
from ._registry import Need, UnlearnerOptions, unlearners

SLOWED = 0.1
"""Factor on the gradient of weights that were not started anew."""


class MSGConfig(UnlearnerOptions):
    """Start the weights with the smallest contrast of gradients anew, then fine-tune."""

    name: Literal["msg"] = "msg"
    init_rate: float = Field(
        0.3, gt=0, lt=1, description="Share of each layer's weights that are started anew."
    )
    epochs: int = Field(5, ge=1, le=100, description="Passes over the retain set.")
    lr: float = Field(
        0.01, gt=0, le=1, description="Peak rate of SGD with momentum 0.9, reached half-way."
    )

    needs: ClassVar[tuple[Need, ...]] = ("retain",)
    source: ClassVar[str] = "Cadet et al., arXiv:2410.01276"


@unlearners
def msg(problem: Problem, config: MSGConfig) -> nn.Module:
    """Train, and return, ``problem.model``.

    Raises:
        MissingEvidence: without a retain set.
    """
    retain = need_retain(problem)
    model = problem.model.to(problem.device)
    anew = _start_anew(problem, contrast(problem, retain), config.init_rate)
    problem.keep_masks(model)
    problem.tried.append({"started_anew": sum(int(mask.sum()) for mask in anew.values())})
    hooks = [
        value.register_hook(_slow(anew[name]))
        for name, value in model.named_parameters()
        if name in anew and value.requires_grad
    ]
    frozen = problem.bn_policy == "frozen"
    try:
        with batchnorm.frozen(model) if frozen else nullcontext():
            fit(
                model,
                retain,
                _recipe(problem, config),
                seed=problem.seed,
                device=problem.device,
                masks=problem.masks,
                progress=problem.progress,
                check_time=problem.check_time,
                keeper=problem.keeper,
            )
    finally:
        for hook in hooks:
            hook.remove()
    settle(problem, model)
    return model


def contrast(problem: Problem, retain: Records) -> dict[str, Tensor]:
    """Gradient of the retain loss minus the forget loss, per weight of conv and linear layers.

    Of the retain set as many records are drawn as the forget set has.
    """
    order = torch.randperm(len(retain), generator=generator(problem.seed))
    sample = retain.take(order[: len(problem.forget)].sort().values)
    model = problem.model.eval()
    model.zero_grad(set_to_none=True)
    for records, sign in ((sample, 1), (problem.forget, -1)):
        for x, y in records.batches(problem.batch_size, problem.device):
            problem.check_time()
            loss = F.cross_entropy(model(x), y, reduction="sum")
            (loss * (sign / len(records))).backward()
    found = {
        f"{name}.weight" if name else "weight": layer.weight.grad
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear | _ConvNd)
    }
    model.zero_grad(set_to_none=True)
    return {name: gradient for name, gradient in found.items() if gradient is not None}


@torch.no_grad()
def _start_anew(
    problem: Problem, gradients: dict[str, Tensor], init_rate: float
) -> dict[str, Tensor]:
    """Draw the weights of smallest gradient anew; return bool per weight, True where drawn."""
    draw = generator(problem.seed)
    anew: dict[str, Tensor] = {}
    for name, gradient in gradients.items():
        size = gradient.abs()
        count = size.numel()
        if problem.masks is not None and name in problem.masks:
            mask = problem.masks[name].to(size.device)
            size, count = size.masked_fill(~mask, torch.inf), int(mask.sum())
        smallest = size.flatten().argsort(stable=True)[: round(init_rate * count)]
        chosen = torch.zeros(size.numel(), dtype=torch.bool, device=size.device)
        chosen[smallest] = True
        chosen = chosen.view(size.shape)
        value = problem.model.get_parameter(name)
        fresh = torch.empty(value.shape)
        nn.init.kaiming_normal_(fresh, nonlinearity="relu", generator=draw)
        value.copy_(torch.where(chosen, fresh.to(value), value))
        anew[name] = chosen
    return anew


def _slow(anew: Tensor) -> Callable[[Tensor], Tensor]:
    factor = torch.where(anew, 1.0, SLOWED)
    return lambda gradient: gradient * factor


def _recipe(problem: Problem, config: MSGConfig) -> Recipe:
    """Keep weight decay and augmentation of the parent's recipe where it is known."""
    known = problem.recipe
    is_sgd = known is not None and isinstance(known.optimizer, SGD)
    return Recipe(
        epochs=config.epochs,
        batch_size=problem.batch_size,
        optimizer=SGD(
            lr=config.lr,
            momentum=0.9,
            weight_decay=known.optimizer.weight_decay if known is not None and is_sgd else 0.0,
        ),
        schedule=Cosine(warmup=0.5),
        augment=known.augment if known is not None else (),
        precision=precision(problem),
    )
