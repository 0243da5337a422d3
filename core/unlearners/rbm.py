"""Retention-based masking: what the retained records do not use is erased, or alone may unlearn.

Source: Ding et al., TMLR 2025, arXiv:2410.03833v2: masks built from retained records in place of
    masks built from the forget set.
Differs: the paper's threshold, and whether its mask erases or protects, are not known to us; both
    readings are offered, hence experimental. Saliency is of each record's own gradient, not of the
    mean one, which is noise at a model that has learned its records. The quantile is taken within
    each matrix, over weights that are not pruned; over all of them it empties whole layers.
    Batch norm is measured anew after erasing, and while that is repaired it follows the batches.
Cost: saliency (``fisher``: a forward and a backward pass over the retain set; ``absgrad``: one
    gradient for each of 256 retained records), then ``epochs`` passes over the retain set, for
    ``update`` with as many forget batches beside. Memory: three copies of the weights.
Promise: approximate, experimental. In the linear model it keeps what the forget set taught the
    features that both share, so that it forgets less than a model that never saw the set.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..masks import Masks, apply_masks
from ..problem import Problem
from ..relabel import wrong_labels
from ..report import Progress
from ..retention import SAMPLE, most_salient, saliency
from ._batchnorm import settle
from ._descent import DescentOptions, Pair, Plan, descend, need_retain, rate
from ._registry import Need, unlearners

_SALIENCY_SHARE = 0.3


class RBMConfig(DescentOptions):
    """Erase the weights that the retain set uses least, or unlearn in them alone; experimental."""

    name: Literal["rbm"] = "rbm"
    epochs: int = Field(5, ge=1, le=100, description="Passes over the retain set at most.")
    stop: bool = Field(
        True,
        description="For variant update: stop as soon as the forget records are recognised no "
        "better than never-seen tuning records (records) or chance (a class). Erase goes on to "
        "the end, since it repairs utility.",
    )
    variant: Literal["erase", "update"] = Field(
        "erase",
        description="erase sets the least salient weights to zero and fine-tunes on the retain "
        "set; update lets wrong labels of the forget set move them alone.",
    )
    saliency: Literal["absgrad", "fisher"] = Field(
        "fisher",
        description="Sum over 256 retained records of the absolute gradient, or mean over all of "
        "them of the squared one.",
    )
    quantile: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="Share of the weights of each matrix that counts as unused by the retain set; "
        "worth trying: 0.3, 0.5.",
    )

    needs: ClassVar[tuple[Need, ...]] = ("retain",)
    source: ClassVar[str] = "Ding et al., TMLR 2025, arXiv:2410.03833v2"


@unlearners
def rbm(problem: Problem, config: RBMConfig) -> nn.Module:
    """Train, and return, ``problem.model``.

    Raises:
        MissingEvidence: without a retain set.
        InvalidInput: for ``erase``, if batch norm would meet single records.
        Infeasible: for ``update``, if there is no wrong label to draw.
    """
    used = _used(problem, config)
    rest = replace(problem, progress=_after_saliency(problem))
    plan = Plan(
        epochs=config.epochs,
        lr=rate(problem, config.lr, sgd=0.01, adamw=1e-4),
        pace="retain",
        # A channel that lost its weights is constant: normalised by the variance it has left, its
        # gradients explode; batches bring it back.
        batch_statistics=config.variant == "erase" and problem.bn_policy != "frozen",
        stop=config.stop and config.variant == "update",
    )
    if config.variant == "erase":
        apply_masks(problem.model, used)
        settle(problem, problem.model)
        return _repair(rest, plan)
    return _update(rest, plan, used)


def _repair(problem: Problem, plan: Plan) -> nn.Module:
    def gradients(pair: Pair) -> Tensor:
        loss = F.cross_entropy(problem.model(pair.retain[0]), pair.retain[1])
        loss.backward()
        return loss

    return descend(problem, gradients, plan, forget=problem.forget.take([]))


def _update(problem: Problem, plan: Plan, used: Masks) -> nn.Module:
    """Forget in the unused weights, retain in all of them."""
    model = problem.model
    free = {name: ~mask.to(problem.device) for name, mask in used.items()}
    labels = wrong_labels(
        problem.forget.labels, problem.num_classes, problem.seed, problem.forgotten_classes
    )

    def gradients(pair: Pair) -> Tensor:
        forget_loss = F.cross_entropy(model(pair.forget[0]), pair.forget[1])
        forget_loss.backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(free[name])
        retain_loss = F.cross_entropy(model(pair.retain[0]), pair.retain[1])
        retain_loss.backward()
        return forget_loss.detach() + retain_loss.detach()

    return descend(problem, gradients, plan, forget=replace(problem.forget, labels=labels))


def _used(problem: Problem, config: RBMConfig) -> Masks:
    """True for the weights that stay, or that forgetting may not move."""
    retain = need_retain(problem)
    values = saliency(
        problem.model,
        retain,
        config.saliency,
        batch_size=problem.batch_size,
        device=problem.device,
        seed=problem.seed,
        progress=lambda fraction, told: problem.progress(_SALIENCY_SHARE * fraction, told),
        check_time=problem.check_time,
    )
    used = most_salient(values, config.quantile, problem.masks)
    problem.tried.append(
        {
            "variant": config.variant,
            "saliency": config.saliency,
            "records": min(len(retain), SAMPLE) if config.saliency == "absgrad" else len(retain),
            "quantile": config.quantile,
            "unused": sum(int((~mask).sum()) for mask in used.values()),
            "unused_without_saliency": sum(
                int((values[name][~mask] == 0).sum()) for name, mask in used.items()
            ),
        }
    )
    return used


def _after_saliency(problem: Problem) -> Progress:
    def progress(fraction: float, metrics: dict[str, float]) -> None:
        problem.progress(_SALIENCY_SHARE + (1 - _SALIENCY_SHARE) * fraction, metrics)

    return progress
