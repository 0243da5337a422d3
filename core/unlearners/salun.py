"""Random labels, on none but the weights that matter most to the forget set.

Source: Fan et al., ICLR 2024, arXiv:2310.12508 (SalUn).
Differs: weights outside the mask keep the parent's value to the bit, whatever momentum and weight
    decay do (the reference masks gradients alone); batch norm stays frozen during the steps; a
    wrong label is drawn once per record and is never the true one nor a forgotten class; the norm
    of a step's gradient is cut at 1.
Cost: one forward and backward pass over the forget set; then per step one over a forget and a
    retain batch, ``epochs`` passes over the retain set at most; momentum, mask and parent, three
    copies of the model.
Promise: approximate. Weights outside the mask are the parent's, with what they know.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..problem import Problem
from ._descent import LARGEST_GRADIENT, DescentOptions, Pair, Plan, descend, rate
from ._registry import Need, unlearners
from ._surgery import Losses


class SalunConfig(DescentOptions):
    """Train the forget set on wrong labels, moving only weights that are salient for it."""

    name: Literal["salun"] = "salun"
    epochs: int = Field(10, ge=1, le=100, description="Passes over the retain set at most.")
    top_fraction: float = Field(
        0.5, gt=0, le=1, description="Share of the weights, largest gradients first, that may move."
    )

    needs: ClassVar[tuple[Need, ...]] = ("retain",)
    source: ClassVar[str] = "Fan et al., ICLR 2024, arXiv:2310.12508"


@unlearners
def salun(problem: Problem, config: SalunConfig) -> nn.Module:
    """Train, and return, ``problem.model``.

    Raises:
        MissingEvidence: without a retain set.
        Infeasible: if there is no wrong label to draw.
    """
    losses = Losses(problem, "random_label")
    movable = top(saliency(problem), config.top_fraction)
    problem.tried.append({"movable": sum(int(mask.sum()) for mask in movable.values())})

    def gradients(pair: Pair) -> Tensor:
        loss = losses.forget(pair) + losses.retain(pair)
        loss.backward()
        return loss.detach()

    plan = Plan(
        epochs=config.epochs,
        lr=rate(problem, config.lr, sgd=0.01, adamw=1e-4),
        pace="retain",
        clip=LARGEST_GRADIENT,
        stop=config.stop,
        movable=movable,
    )
    return descend(problem, gradients, plan, forget=losses.records)


def saliency(problem: Problem) -> dict[str, Tensor]:
    """Size of the gradient of the forget set's loss, per weight; below zero where pruned."""
    model = problem.model.to(problem.device).eval()
    model.zero_grad(set_to_none=True)
    for x, labels in problem.forget.batches(problem.batch_size, problem.device):
        problem.check_time()
        loss = F.cross_entropy(model(x), labels, reduction="sum")
        loss.backward()
    found = {
        name: torch.zeros_like(value) if value.grad is None else value.grad.abs()
        for name, value in model.named_parameters()
        if value.requires_grad
    }
    model.zero_grad(set_to_none=True)
    for name, mask in (problem.masks or {}).items():
        found[name].masked_fill_(~mask.to(found[name].device), -1)
    return found


def top(scores: Mapping[str, Tensor], fraction: float) -> dict[str, Tensor]:
    """Mark the share ``fraction`` of all weights, pruned ones apart, with the largest scores."""
    flat = torch.cat([value.flatten() for value in scores.values()])
    count = max(1, round(fraction * int((flat >= 0).sum())))
    marked = torch.zeros_like(flat, dtype=torch.bool)
    marked[flat.topk(count).indices] = True
    parts = marked.split([value.numel() for value in scores.values()])
    return {
        name: part.reshape(value.shape)
        for (name, value), part in zip(scores.items(), parts, strict=True)
    }
