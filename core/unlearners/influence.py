"""Influence unlearning: one damped Newton step towards the optimum of the retain set.

Source: the baseline IU of Jia et al., NeurIPS 2023, arXiv:2304.04934; Koh, Liang, ICML 2017,
    arXiv:1703.04730; Singh, Alistarh, NeurIPS 2020, arXiv:2004.14340 (WoodFisher).
Differs: the curvature is the Gauss-Newton matrix, or the empirical Fisher matrix inverted by
    Woodbury's identity, over records of the full set in evaluation form (the reference code's
    recursion never leaves the span of the first gradient, over the first 1 000 augmented retained
    records, and so is a step along the plain difference of gradients); the step is capped against
    the norm of the weights, and halved until the retain loss holds.
Cost: one forward and backward pass over the forget and the retain set; per iteration of ``cg``
    about twice as much over ``samples`` records; ``woodbury`` as in ``core.curvature``. Memory: six
    vectors of the weights' size above a training step.
Promise: approximate. First order in the share of the records that go, and only as good as the
    curvature; on a network that has learned its records by heart there is little of either.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..curvature import GaussNewton, conjugate_gradients, woodbury
from ..data import Records
from ..determinism import generator
from ..device import full_precision
from ..errors import Infeasible
from ..flat import Passes, Weights, dot, mean_gradient
from ..problem import Problem
from ..scores import gather
from ._batchnorm import settle_at_last
from ._descent import need_retain
from ._registry import Need, UnlearnerOptions, unlearners

HALVINGS = 10
JUDGED_RECORDS = 2048
"""Retained records on which the loss must hold."""

_SAMPLE, _SIGNS, _JUDGES = 1, 2, 3
"""Offsets of the seed."""


class InfluenceConfig(UnlearnerOptions):
    """Step to where the optimum would be without the forget set, as curvature predicts it."""

    name: Literal["influence"] = "influence"
    alpha: float = Field(
        1.0, gt=0, le=50, description="Length of the step; 1 is the full Newton step."
    )
    solver: Literal["cg", "woodbury"] = Field(
        "cg",
        description="Conjugate gradients on the Gauss-Newton matrix (cg), or the exact inverse of "
        "the empirical Fisher matrix (woodbury), quadratic in samples.",
    )
    damping: float = Field(
        1e-2, gt=0, le=1e3, description="Damping over the mean diagonal of the curvature."
    )
    cg_iters: int = Field(30, ge=1, le=1000, description="Iterations of solver cg at most.")
    samples: int = Field(
        1000, ge=1, le=100_000, description="Records of the full set that the curvature is of."
    )
    step_cap: float = Field(
        0.1, gt=0, le=10, description="Longest step, as a share of the norm of the weights."
    )
    max_loss_rise: float = Field(
        0.1,
        ge=0,
        le=10,
        description="Largest rise of the mean retain loss, in nats; a step that costs more is "
        "halved.",
    )

    needs: ClassVar[tuple[Need, ...]] = ("retain",)
    source: ClassVar[str] = "Koh, Liang, ICML 2017, arXiv:1703.04730"


@unlearners
def influence(problem: Problem, config: InfluenceConfig) -> nn.Module:
    """Step in place, and return, ``problem.model``.

    Raises:
        MissingEvidence: without a retain set.
        Diverged: if gradient or curvature are not finite.
        Infeasible: if even the shortest step costs too much of the retain loss.
    """
    need_retain(problem)
    model = problem.model.to(problem.device).eval()
    if problem.forget.images.ndim == 4:
        model.to(memory_format=torch.channels_last)
    weights = Weights(model, problem.masks)
    with full_precision():
        step = _solve(problem, config, weights, pull(problem, weights))
        _walk(problem, config, weights, step)
    problem.keep_masks(model)
    settle_at_last(problem, model)
    problem.progress(1.0, {})
    return model


def pull(problem: Problem, weights: Weights) -> Tensor:
    """Return v = (n_f / N) (g_f - g_r): the gradient of the full loss less the retain loss's."""
    retain = need_retain(problem)
    found = mean_gradient(weights, _passes(problem, problem.forget))
    problem.progress(0.1, {})
    found -= mean_gradient(weights, _passes(problem, retain))
    problem.progress(0.3, {})
    return found.mul_(len(problem.forget) / (len(problem.forget) + len(retain)))


def _solve(problem: Problem, config: InfluenceConfig, weights: Weights, vector: Tensor) -> Tensor:
    """Return the damped inverse curvature times ``vector``, which is overwritten."""
    passes = _passes(problem, _sample(problem, config.samples))
    if config.solver == "woodbury":
        step, damping = woodbury(weights, passes, vector, config.damping)
        problem.tried.append({"solver": "woodbury", "damping": damping})
        return step
    matrix = GaussNewton(weights, passes)
    damping = config.damping * matrix.mean_diagonal(generator(problem.seed + _SIGNS))
    if damping <= 0:
        raise Infeasible("the network is certain of every record: its curvature is zero")
    done = 0

    def product(direction: Tensor) -> Tensor:
        nonlocal done
        image = matrix(direction)
        done += 1
        problem.progress(0.35 + 0.5 * done / config.cg_iters, {})
        return image

    step, residual = conjugate_gradients(product, vector, damping, config.cg_iters)
    problem.tried.append(
        {"solver": "cg", "damping": damping, "iterations": done, "residual": residual}
    )
    return step


def _walk(problem: Problem, config: InfluenceConfig, weights: Weights, step: Tensor) -> None:
    """Add the capped step to the weights, halved until the retain loss holds."""
    retain = need_retain(problem)
    order = torch.randperm(len(retain), generator=generator(problem.seed + _JUDGES))
    judges = retain.take(order[:JUDGED_RECORDS])
    parent = weights.values()
    longest = config.step_cap * math.sqrt(dot(parent, parent))
    length = config.alpha * math.sqrt(dot(step, step))
    share = config.alpha * min(1.0, longest / length) if length > 0 else 0.0
    before = _loss(problem, judges)
    for _ in range(HALVINGS):
        problem.check_time()
        weights.write(parent.add(step, alpha=share))
        rise = _loss(problem, judges) - before
        problem.tried.append({"alpha": share, "wanted": config.alpha, "retain_loss_rise": rise})
        if rise <= config.max_loss_rise:
            return
        share /= 2
    weights.write(parent)
    raise Infeasible("no step along the influence direction keeps the retain loss")


def _loss(problem: Problem, records: Records) -> float:
    logits = gather(
        problem.model, records, batch_size=problem.batch_size, device=problem.device
    ).double()
    return float(F.cross_entropy(logits, records.labels.cpu()))


def _sample(problem: Problem, count: int) -> Records:
    """Draw records of the full set."""
    forget, retain = problem.forget, need_retain(problem)
    total = len(forget) + len(retain)
    drawn = torch.randperm(total, generator=generator(problem.seed + _SAMPLE))[:count]
    of_forget = drawn < len(forget)
    return forget.take(drawn[of_forget]).join(retain.take(drawn[~of_forget] - len(forget)))


def _passes(problem: Problem, records: Records) -> Passes:
    return Passes(records, problem.batch_size, problem.device, problem.check_time)
