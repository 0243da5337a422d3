"""Fisher forgetting: noise on every weight, the less the retain set leans on it.

Source: Golatkar, Achille, Soatto, CVPR 2020, arXiv:1911.04933; variances, clamps and class rows as
    in the code of Jia et al., NeurIPS 2023, arXiv:2304.04934.
Differs: the diagonal Fisher of the model squares per-record gradients over labels that the model
    itself predicts (the reference code squares batch means of 32 records weighted by mean
    probabilities); the last layer is the one that runs last (there: any parameter whose first
    dimension is the number of classes); only a class request touches the rows of its classes
    (there: a request for records wipes the last class); variances are averaged over unpruned
    weights alone; batch norm is recalibrated, since noise shifts the activations.
Cost: one forward and backward pass over the retain set per draw; with ``estimator: model`` one
    backward pass per class. Memory: four copies of the weights.
Promise: approximate, and a baseline: for records the noise does not know the forget set, so it
    costs utility before it forgets.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..classifier import parts
from ..determinism import generator
from ..errors import Infeasible
from ..importance import estimate
from ..problem import Problem
from ..scores import gather
from ..situation import Estimator
from ._batchnorm import settle_at_last
from ._descent import need_retain
from ._registry import Need, UnlearnerOptions, unlearners

LARGEST = 1e3
"""Of 1 / Fisher; in the last layer LARGEST_IN_LAST."""
LARGEST_IN_LAST = 1e2
FLOOR = 1e-8
RAISED = 10.0
"""Factor on the variance of the last layer and of vectors (biases, norm gains)."""
CLASS_VARIANCE = 1e-4
"""Of the noise that replaces a forgotten class's row."""

_NOISE, _LABELS = 1, 2
"""Offsets of the seed."""


class FisherForgettingConfig(UnlearnerOptions):
    """Add noise where the retain set's Fisher information is low."""

    name: Literal["fisher_forgetting"] = "fisher_forgetting"
    alpha: float = Field(
        1e-8, ge=0, le=1e-3, description="Variance of the noise times the Fisher information."
    )
    estimator: Literal["model", "sampled"] = Field(
        "sampled",
        description="Expectation over the labels that the model predicts: exact, at one backward "
        "pass per class (model), or one label drawn per record (sampled).",
    )
    passes: int = Field(1, ge=1, le=100, description="Draws that estimator sampled averages over.")

    needs: ClassVar[tuple[Need, ...]] = ("retain",)
    source: ClassVar[str] = "Golatkar, Achille, Soatto, CVPR 2020, arXiv:1911.04933"


@unlearners
def fisher_forgetting(problem: Problem, config: FisherForgettingConfig) -> nn.Module:
    """Add noise in place, and return, ``problem.model``.

    Raises:
        MissingEvidence: without a retain set.
        Diverged: if the Fisher information is not finite.
        Infeasible: if the last layer has no row for each class, for a class request.
    """
    need_retain(problem)
    last = last_layers(problem)
    noise = variances(problem, fisher(problem, config), config.alpha, last)
    problem.check_time()
    add_noise(problem, noise, last)
    problem.keep_masks(problem.model)
    problem.tried.append({"alpha": config.alpha, "estimator": config.estimator})
    problem.model.eval()
    settle_at_last(problem, problem.model)
    problem.progress(1.0, {})
    return problem.model


def fisher(problem: Problem, config: FisherForgettingConfig) -> dict[str, Tensor]:
    """Return the diagonal Fisher information on the retain set, float64 per parameter name."""
    retain = need_retain(problem)
    sampled = config.estimator == "sampled"
    kind: Estimator = "fisher_persample" if sampled else "fisher_model"
    passes = config.passes if sampled else 1
    draw = generator(problem.seed + _LABELS)
    total: dict[str, Tensor] = {}
    if sampled:
        logits = gather(problem.model, retain, batch_size=problem.batch_size, device=problem.device)
        predicted = logits.double().softmax(dim=1)
    for index in range(passes):
        if sampled:
            labels = torch.multinomial(predicted, 1, generator=draw).squeeze(1)
            retain = replace(retain, labels=labels.to(retain.labels.device))
        found = estimate(
            problem.model,
            retain,
            kind,
            batch_size=problem.batch_size,
            device=problem.device,
            progress=lambda share, _, index=index: problem.progress(  # type: ignore[misc]
                0.95 * (index + share) / passes, {}
            ),
            check_time=problem.check_time,
        )
        for name, value in found.values.items():
            total[name] = total.get(name, 0) + value.double() / passes
    return total


def last_layers(problem: Problem) -> list[nn.Module]:
    """Return the layer with parameters that runs last; in an ensemble, that of each member.

    Raises:
        Infeasible: for a class request, if a layer has not one row for each class.
    """
    ran: list[nn.Module] = []
    layers = [
        m for m in problem.model.modules() if next(m.parameters(recurse=False), None) is not None
    ]
    hooks = [m.register_forward_hook(lambda layer, *_: ran.append(layer)) for m in layers]
    try:
        one = problem.forget.take([0])
        gather(problem.model, one, batch_size=1, device=problem.device)
    finally:
        for hook in hooks:
            hook.remove()
    last = []
    for part in parts(problem.model):
        own = {*part.modules()}
        last.append([layer for layer in ran if layer in own][-1])
    rows = {len(p) for layer in last for p in layer.parameters(recurse=False)}
    if problem.selector == "class" and rows != {problem.num_classes}:
        raise Infeasible("the last layer of the network has not one row for each class")
    return last


def variances(
    problem: Problem, information: dict[str, Tensor], alpha: float, last: list[nn.Module]
) -> dict[str, Tensor]:
    """Return the variance of the noise per parameter name, float64, broadcast to its shape.

    A matrix or kernel has one variance per output unit (and position): the mean over its inputs.
    """
    in_last = {id(p) for layer in last for p in layer.parameters(recurse=False)}
    found = {}
    for name, parameter in problem.model.named_parameters():
        is_last = id(parameter) in in_last
        largest = LARGEST_IN_LAST if is_last else LARGEST
        value = alpha * (1 / (information[name] + FLOOR)).clamp(max=largest)
        if parameter.ndim > 1:
            mask = (problem.masks or {}).get(name)
            kept = torch.ones_like(value) if mask is None else mask.cpu().to(value)
            value = (value * kept).sum(1, keepdim=True) / kept.sum(1, keepdim=True).clamp(min=1)
        raised = RAISED if is_last or parameter.ndim == 1 else 1.0
        found[name] = (raised * value).expand(parameter.shape)
    return found


@torch.no_grad()
def add_noise(problem: Problem, noise: dict[str, Tensor], last: list[nn.Module]) -> None:
    """Add Gaussian noise of these variances in place; a forgotten class's row is noise alone."""
    draw = generator(problem.seed + _NOISE)
    in_last = {id(p) for layer in last for p in layer.parameters(recurse=False)}
    for name, parameter in problem.model.named_parameters():
        value, deviation = parameter.double().cpu(), noise[name].sqrt()
        if id(parameter) in in_last and problem.forgotten_classes:
            value, deviation = value.clone(), deviation.clone()
            value[problem.forgotten_classes] = 0
            deviation[problem.forgotten_classes] = CLASS_VARIANCE**0.5
        standard = torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
        parameter.copy_(value + deviation * standard)
