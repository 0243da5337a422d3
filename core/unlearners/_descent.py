"""Steps on paired batches of forget and retain records: the loop that gradient unlearners share.

Forget and retain batches are drawn apart, so that no step is without a forget record. Batch norm
stays on its running statistics, measured anew at each look, unless an unlearner asks for batch
statistics: tracked, those of forget batches would be in the model, and one record has none. So the
policy ``tracked`` is ``frozen`` here, and the record of trials says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from .. import batchnorm
from ..data import Records, num_batches
from ..determinism import generator
from ..device import autocast
from ..errors import MissingEvidence
from ..pieces import Sparing
from ..problem import Problem
from ..recipe import SGD
from ..smallmaps import dense_small_maps
from ..training import Monitor
from ._batchnorm import settle, settle_at_last
from ._guard import Guard
from ._registry import UnlearnerOptions

CHECKS_PER_EPOCH = 10
LARGEST_GRADIENT = 1.0
"""Norm to which a step's gradient is cut where two losses pull against each other: of a model that
learned by heart a wrong label asks for so much that the next loss is not finite."""
LARGEST_GRADIENT_ALONE = 10 * LARGEST_GRADIENT
"""The same without momentum, where no ten steps add up."""
LONGEST_WAIT = 5
"""Steps between two looks, where a tenth of an epoch is not more."""

_LOOK_RECALIBRATION = 512

Batch = tuple[Tensor, Tensor]
"""Inputs and labels."""


class DescentOptions(UnlearnerOptions):
    """Options that every unlearner with paired batches has."""

    epochs: int = Field(5, ge=1, le=100, description="Passes over the forget set at most.")
    lr: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Learning rate. Left out: one that suits the optimizer of the recipe.",
    )
    stop: bool = Field(
        True,
        description="Stop as soon as the forget records are recognised no better than never-seen "
        "tuning records (records) or chance (a class).",
    )


@dataclass(frozen=True)
class Pair:
    """One step's batches; a role the unlearner did not ask for is empty."""

    step: int
    of: int
    forget: Batch
    retain: Batch


Gradients = Callable[[Pair], Tensor]
"""Sets ``.grad`` of the parameters for one step, and returns the loss."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How to go through the records."""

    epochs: int
    lr: float
    pace: Literal["forget", "retain", "turns"] = "forget"
    """Whose pass is an epoch; the other one's batches go round and round. With ``turns`` an epoch
    is a forget pass and then a retain pass, and the role whose turn it is not is empty."""
    momentum: float = 0.9
    weight_decay: float | None = None
    """None takes the recipe's."""
    clip: float | None = None
    """Largest norm of the gradient, cut after the backward pass."""
    batch_statistics: bool = False
    """Normalise by batch and track, as in training; else running statistics stay as they are."""
    stop: bool = True
    movable: Mapping[str, Tensor] | None = None
    """bool per parameter name; where False, the parent's value stays whatever the optimizer does.
    A name left out moves."""


def descend(
    problem: Problem,
    gradients: Gradients,
    plan: Plan,
    *,
    forget: Records | None = None,
    retain: Records | None = None,
    after_step: Callable[[Pair], None] | None = None,
) -> nn.Module:
    """Step ``problem.model`` in place, settle its batch norm, and return it in eval mode.

    Args:
        problem: what to unlearn.
        gradients: called once a step with zeroed gradients, and again, on the same weights, where
            the memory did not suffice; the model then goes through its batches in pieces.
        plan: how many steps of which size.
        forget: instead of the problem's, with other labels for instance.
        retain: instead of the problem's, a part of it for instance.
        after_step: called once the weights have moved.

    Raises:
        MissingEvidence: if the pace is set by retained records and there are none.
        InvalidInput: ``retain_set_too_small`` or ``recipe_invalid`` if batch norm, where it is to
            follow the batches, would meet single records.
        Diverged: if a loss is not finite, or exploded.
        torch.OutOfMemoryError: as ``Sparing.run``.
    """
    model, device = problem.model.to(problem.device), problem.device
    problem.keep_masks(model)
    if (
        problem.bn_policy == "tracked"
        and not plan.batch_statistics
        and batchnorm.has_batchnorm(model)
    ):
        problem.tried.append({"batch_norm": "as frozen: a step on forget records tracks nothing"})
    forget = problem.forget if forget is None else forget
    retain = problem.retain if retain is None else retain
    every, turn = _steps_per_epoch(problem, plan, forget, retain)
    total = plan.epochs * every
    if plan.batch_statistics and retain is not None:
        batchnorm.check_batches(model, len(retain), problem.batch_size)
    optimizer = _optimizer(problem, plan)
    parent = None if plan.movable is None else _copies(model, plan.movable)
    watch = _Watch(problem, plan, every, total)
    monitor = Monitor(_scaled(problem, 0.98), total, problem.num_classes)
    streams = _stream(problem, forget, 0), _stream(problem, retain, 1)
    idle = _stream(problem, None, 0)
    sparing = Sparing(model)
    model.train()
    if device.type == "cuda" and forget.images.ndim == 4:
        model.to(memory_format=torch.channels_last)
    statistics = nullcontext() if plan.batch_statistics else batchnorm.frozen(model)
    with statistics, dense_small_maps(model):
        for step in range(total):
            problem.check_time()
            of_forget, of_retain = streams
            if turn is not None:
                is_forget = step % every < turn
                of_forget, of_retain = (of_forget, idle) if is_forget else (idle, of_retain)
            pair = Pair(step=step, of=total, forget=next(of_forget), retain=next(of_retain))
            loss = sparing.run(_gradients, problem, gradients, pair)
            if plan.clip is not None:
                mask_gradients(problem)
                nn.utils.clip_grad_norm_(model.parameters(), plan.clip)
            optimizer.step()
            problem.keep_masks(model)
            if parent is not None and plan.movable is not None:
                _restore(model, parent, plan.movable)
            if after_step is not None:
                with sparing.split():
                    after_step(pair)
            monitor.tick(loss.detach())
            if watch.enough(step + 1):
                break
    monitor.end()
    model.eval()
    settle_at_last(problem, model)
    problem.progress(1.0, {})
    return model


def _gradients(problem: Problem, gradients: Gradients, pair: Pair) -> Tensor:
    with autocast(problem.device, precision(problem)):
        return gradients(pair)


@torch.no_grad()
def mask_gradients(problem: Problem) -> None:
    """Zero the gradients of pruned weights, which stay: what can't move must not count."""
    for name, mask in (problem.masks or {}).items():
        gradient = problem.model.get_parameter(name).grad
        if gradient is not None:
            gradient.masked_fill_(~mask.to(gradient.device), 0)


def rate(problem: Problem, given: float | None, *, sgd: float, adamw: float) -> float:
    """Return the learning rate that was asked for, or the one that suits the recipe's optimizer."""
    if given is not None:
        return given
    return sgd if uses_sgd(problem) else adamw


def uses_sgd(problem: Problem) -> bool:
    """Whether to step with SGD: as the parent was trained, and where that is not known."""
    return problem.recipe is None or isinstance(problem.recipe.optimizer, SGD)


def precision(problem: Problem) -> Literal["fp32", "bf16"]:
    """Precision of matrix products: the one the parent was trained in."""
    return "fp32" if problem.recipe is None else problem.recipe.precision


def need_retain(problem: Problem) -> Records:
    """Return the retain set, or raise MissingEvidence."""
    if problem.retain is None:
        raise MissingEvidence("the retain set is missing")
    return problem.retain


def _steps_per_epoch(
    problem: Problem, plan: Plan, forget: Records, retain: Records | None
) -> tuple[int, int | None]:
    """Steps of an epoch, and how many of them are the forget set's turn, if there are turns."""
    if plan.pace != "forget" and retain is None:
        raise MissingEvidence("the retain set is missing")
    of_forget = num_batches(len(forget), problem.batch_size)
    of_retain = 0 if retain is None else num_batches(len(retain), problem.batch_size)
    match plan.pace:
        case "forget":
            return of_forget, None
        case "retain":
            return of_retain, None
        case "turns":
            return of_forget + of_retain, of_forget


class _Watch:
    """Looks at tuning records now and then, and says when enough is forgotten.

    Records can be forgotten too much. So a look comes after one step, and then after up to twice
    as many each time, no later than half way to the target at the pace of the last ones: some
    methods are there in a few steps. Of a class and of poison nothing need be recognised, and more
    steps mend what stays. Where roles take turns, looks are at the end of an epoch alone, when the
    retain set has had its turn, too. The last step is always looked at.
    """

    def __init__(self, problem: Problem, plan: Plan, steps_per_epoch: int, total: int) -> None:
        self._problem, self._total = problem, total
        self._longest = max(LONGEST_WAIT, steps_per_epoch // CHECKS_PER_EPOCH)
        if plan.pace == "turns":
            self._longest = steps_per_epoch
        one_sided = problem.selector == "class" or problem.purpose == "poison_removal"
        self._shortest = self._longest if one_sided or plan.pace == "turns" else 1
        self._guard = Guard(problem, 1.0) if plan.stop and problem.tuning is not None else None
        self._wait = self._next = min(self._longest, total)
        if self._guard is not None:
            parent = self._guard.measure(problem.model)
            # A model that falls apart recognises never-seen records less and less, too: to follow
            # it down would let the forget records never be forgotten enough.
            self._target, self._seen = parent.target, parent.forget_accuracy
            self._wait = self._next = min(self._shortest, total)
        elif plan.stop:
            problem.tried.append({"stop": "never: there are no tuning records"})

    def enough(self, steps: int) -> bool:
        if steps < self._next:
            return False
        # What fades under the parent's running statistics may be back once they are measured anew;
        # so they follow the weights, and a look sees what would be handed back.
        settle(self._problem, self._problem.model, _LOOK_RECALIBRATION)
        if self._guard is None:
            self._next += self._longest
            return False
        found = self._guard.measure(self._problem.model)
        target = max(self._target, found.target)
        forgot = found.forget_accuracy <= target
        self._problem.tried.append(
            {"steps": steps, **found.as_dict(), "target": target, "forgot": forgot}
        )
        fall, self._seen = self._seen - found.forget_accuracy, found.forget_accuracy
        most = min(2 * self._wait, self._longest)
        if fall > 0:
            most = min(most, int((found.forget_accuracy - target) / fall * self._wait / 2))
        self._wait = max(self._shortest, most)
        self._next = min(steps + self._wait, self._total)
        return forgot


def _optimizer(problem: Problem, plan: Plan) -> torch.optim.Optimizer:
    parameters = [p for p in problem.model.parameters() if p.requires_grad]
    decay = plan.weight_decay
    if decay is None:
        decay = 0.0 if problem.recipe is None else problem.recipe.optimizer.weight_decay
    if uses_sgd(problem):
        return torch.optim.SGD(
            parameters, lr=plan.lr, momentum=plan.momentum, weight_decay=decay, fused=True
        )
    return torch.optim.AdamW(parameters, lr=plan.lr, weight_decay=decay, fused=True)


def _stream(problem: Problem, records: Records | None, which: int) -> Iterator[Batch]:
    """Yield shuffled batches without end; empty ones where there are no records."""
    if records is None or len(records) == 0:
        while True:
            yield torch.empty(0), torch.empty(0, dtype=torch.int64)
    draw = generator(problem.seed + which)
    augment = problem.recipe.augment if problem.recipe is not None else ()
    while True:
        yield from records.batches(
            problem.batch_size,
            problem.device,
            generator=draw,
            augment=augment if records.images.ndim == 4 else (),
            even=True,
        )


def _scaled(problem: Problem, share: float) -> Callable[[float, dict[str, float]], None]:
    return lambda fraction, metrics: problem.progress(share * fraction, metrics)


def _copies(model: nn.Module, movable: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: value.detach().clone() for name, value in model.named_parameters() if name in movable
    }


@torch.no_grad()
def _restore(model: nn.Module, parent: Mapping[str, Tensor], movable: Mapping[str, Tensor]) -> None:
    for name, value in model.named_parameters():
        if name in movable:
            value.copy_(torch.where(movable[name].to(value.device), value, parent[name]))
