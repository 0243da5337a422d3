"""UNSIR: impair a class with noise that stands for it, then repair the others.

Source: Tarun et al., IEEE TNNLS 2023, arXiv:2111.08947; settings as in the code of Foster et al.,
    AAAI 2024, arXiv:2308.07707.
Differs: every batch with noise has all roles in it at equal weight (theirs: 80 copies of the noise
    shuffled among the records), and the repair takes five passes, not one. What noise does to batch
    norm's running statistics is undone by recalibration on retained records (unless the policy says
    otherwise).
Cost: ``noise_steps`` passes over ``noise_records`` per class, then ``impair_epochs`` +
    ``repair_epochs`` passes over ``per_class`` retained records of each class; momentum.
Promise: approximate, for whole classes. No forget record is looked at, only its label; what the
    weights hold beyond the decision for the class may stay.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..data import Preprocessing, Records, num_batches
from ..determinism import generator
from ..errors import Infeasible, InvalidInput
from ..problem import Problem
from ._descent import Pair, Plan, descend, need_retain, rate
from ._registry import Need, UnlearnerOptions, unlearners


class UNSIRConfig(UnlearnerOptions):
    """Overwrite a class with noise that maximises its error, then repair the other classes."""

    name: Literal["unsir"] = "unsir"
    noise_records: int = Field(32, ge=1, le=1024, description="Noise images per forgotten class.")
    noise_steps: int = Field(25, ge=1, le=1000, description="Adam steps on the noise.")
    noise_lr: float = Field(0.1, gt=0, le=10, description="Learning rate of Adam on the noise.")
    noise_penalty: float = Field(
        0.1, ge=0.001, le=100, description="Weight of the noise's squared norm in its loss."
    )
    per_class: int = Field(
        500, ge=1, le=100_000, description="Retained records of each class to train with."
    )
    impair_epochs: int = Field(1, ge=1, le=100, description="Passes with noise.")
    repair_epochs: int = Field(5, ge=1, le=100, description="Passes without noise afterwards.")
    lr: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Learning rate. Left out: one that suits the optimizer of the recipe.",
    )

    needs: ClassVar[tuple[Need, ...]] = ("retain", "class", "images")
    source: ClassVar[str] = "Tarun et al., IEEE TNNLS 2023, arXiv:2111.08947"


@unlearners
def unsir(problem: Problem, config: UNSIRConfig) -> nn.Module:
    """Train, and return, ``problem.model``.

    Raises:
        MissingEvidence: without a retain set.
        Infeasible: if the request names records instead of a class.
        InvalidInput: ``dataset_values_invalid`` if the records are features; as for ``descend`` if
            batch norm would meet single records.
    """
    retain = need_retain(problem)
    if problem.selector != "class":
        raise Infeasible("noise can stand for a whole class only")
    if problem.forget.images.ndim != 4:
        raise InvalidInput("dataset_values_invalid", "the noise is an image, records are features")
    noise = _noise(problem, config)
    part = _part(retain, config.per_class, problem.seed)
    impaired = config.impair_epochs * num_batches(len(part), problem.batch_size)

    def gradients(pair: Pair) -> Tensor:
        x, y = pair.retain
        if pair.step >= impaired:
            loss = F.cross_entropy(problem.model(x), y)
        else:
            logits = problem.model(torch.cat([x, pair.forget[0]]))
            loss = F.cross_entropy(logits[: len(x)], y)
            loss = loss + F.cross_entropy(logits[len(x) :], pair.forget[1])
        loss.backward()
        return loss.detach()

    plan = Plan(
        epochs=config.impair_epochs + config.repair_epochs,
        lr=rate(problem, config.lr, sgd=0.01, adamw=1e-4),
        pace="retain",
        batch_statistics=problem.bn_policy != "frozen",
        stop=False,
    )
    return descend(problem, gradients, plan, forget=noise, retain=part)


def _noise(problem: Problem, config: UNSIRConfig) -> Records:
    """Images, in the network's own units, on which the parent is as wrong as can be."""
    model, draw = problem.model.to(problem.device).eval(), generator(problem.seed)
    labels = torch.tensor(problem.forgotten_classes).repeat_interleave(config.noise_records)
    shape = (len(labels), *problem.forget.images.shape[1:])
    noise = torch.randn(shape, generator=draw).to(problem.device).requires_grad_(True)
    wanted = labels.to(problem.device)
    optimizer = torch.optim.Adam([noise], lr=config.noise_lr)
    for _ in range(config.noise_steps):
        problem.check_time()
        optimizer.zero_grad()
        error = F.cross_entropy(model(noise), wanted)
        size = noise.square().flatten(1).sum(dim=1).mean()
        (config.noise_penalty * size - error).backward(inputs=[noise])
        optimizer.step()
    with torch.no_grad():
        error = F.cross_entropy(model(noise), wanted)
    problem.tried.append({"noise_error": float(error), "noise_steps": config.noise_steps})
    return Records(
        images=noise.detach().cpu(),
        labels=labels,
        rows=torch.full((len(labels),), -1),
        preprocessing=Preprocessing(scale=1.0),
    )


def _part(records: Records, per_class: int, seed: int) -> Records:
    """Draw at most so many records of each class."""
    order = torch.randperm(len(records), generator=generator(seed))
    labels = records.labels[order]
    chosen = [order[labels == label][:per_class] for label in labels.unique().tolist()]
    return records.take(torch.cat(chosen).sort().values)
