"""Try several values of one option, and keep what the oracle-free rule likes best.

Source: the tuning rule of Patel and Qiu's EUPMU, NeurIPS 2025, arXiv:2510.22124.
Differs: never-seen accuracy in the rule is that of the forget set's own mix of classes. A value is
    judged on at most 1 000 forget, 1 000 retained and 1 000 tuning records.
Cost: that of the unlearner for every value, at most ``max_passes`` in all as ``core.methods``
    counts them, which is to the last epoch; two more copies of the weights. After an interruption
    the trials begin anew.
Promise: that of the unlearner. Values are compared on training and tuning records alone, never on
    those that gates judge by; every one that was tried is kept with what it measured.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from torch import nn

from ..determinism import seed_everything
from ..errors import CoreError, Infeasible, OutOfTime
from ..measures import accuracy
from ..methods import METHODS, Method
from ..problem import Problem
from ..report import within
from ..scores import gather
from ..situation import Estimator, Situation
from ._descent import need_retain, uses_sgd
from ._guard import ALLOWANCE, Guard, sample
from ._others import AnyBut, default
from ._registry import Need, UnlearnerOptions, unlearners

RATES_OF_SGD = (0.001, 0.003, 0.01, 0.03)
RATES_OF_ADAMW = (3e-5, 1e-4, 3e-4, 1e-3)


class TunedConfig(UnlearnerOptions):
    """Run an unlearner with several values of one option, and keep the best.

    For records the best value has the least sum of three distances from the parent: of retained
    accuracy, of never-seen accuracy, and of the forget set's accuracy from the parent's on
    never-seen records. For a class or poison it is the one that forgot most, down to chance, and
    among equals the one with most utility left.
    """

    # the union below is complete only once every unlearner is registered
    model_config = ConfigDict(defer_build=True)

    name: Literal["tuned"] = "tuned"
    unlearner: Annotated[UnlearnerOptions, AnyBut(frozenset({"prune_first", "tuned"}))] = Field(
        default_factory=lambda: default("eupmu"),
        description="The unlearner with its other options: any approximate one but compositions "
        "and those for certain networks. Left out: eupmu with its defaults.",
    )
    option: str = Field("lr", description="The option of the unlearner that is varied, a number.")
    values: tuple[float, ...] | None = Field(
        None,
        min_length=1,
        max_length=8,
        description="What to try, in this order. Left out, for lr: 0.001, 0.003, 0.01 and 0.03, "
        "or a thirtieth of these where the recipe's optimizer is AdamW.",
        validate_default=True,
    )
    max_passes: float = Field(
        20.0,
        gt=0,
        le=1000,
        description="Most passes over all training records of all trials together, as "
        "POST /unlearners/recommend counts them. A trial that would exceed it is not begun.",
    )

    source: ClassVar[str] = "EUPMU, NeurIPS 2025, arXiv:2510.22124"

    @property
    def all_needs(self) -> tuple[Need, ...]:
        """What the rule needs, and what the unlearner does."""
        return tuple(dict.fromkeys(("retain", "holdout", *self.unlearner.all_needs)))

    @property
    def importance_taken(self) -> Estimator | None:
        """As of the unlearner."""
        return self.unlearner.importance_taken

    @property
    def fits_frozen_batchnorm(self) -> bool:
        """As of the unlearner."""
        return self.unlearner.fits_frozen_batchnorm

    @field_validator("unlearner")
    @classmethod
    def _is_approximate(cls, value: UnlearnerOptions) -> UnlearnerOptions:
        if value.is_exact:
            raise ValueError(f"{value.name} is exact: there is nothing to tune")
        return value

    @field_validator("option")
    @classmethod
    def _is_there(cls, value: str, info: ValidationInfo) -> str:
        options = info.data.get("unlearner")
        if options is not None and value not in set(type(options).model_fields) - {"name"}:
            raise ValueError(f"{options.name} has no option {value}")
        return value

    @field_validator("values")
    @classmethod
    def _fit(cls, values: tuple[float, ...] | None, info: ValidationInfo) -> Any:
        options, option = info.data.get("unlearner"), info.data.get("option")
        if options is None or option is None:
            return values
        if values is None and option != "lr":
            raise ValueError(f"say which values of {option} to try")
        for value in values or ():
            try:
                _with(options, option, value)
            except ValidationError as error:
                raise ValueError(f"{value:g}: {error.errors()[0]['msg']}") from error
        return values

    def chosen(self, problem: Problem) -> tuple[float, ...]:
        """The values to try."""
        return self.values or (RATES_OF_SGD if uses_sgd(problem) else RATES_OF_ADAMW)


@unlearners
def tuned(problem: Problem, config: TunedConfig) -> nn.Module:
    """Try the values, each from the parent, and return the best model.

    Raises:
        MissingEvidence: without retained or tuning records, or what the unlearner needs.
        Infeasible: if every trial failed, or the passes do not reach for one, or are not known.
    """
    problem.check_time()
    judge = _Judge(problem)
    values = config.chosen(problem)
    best: nn.Module | None = None
    least, spent = (math.inf, math.inf), 0.0
    for index, value in enumerate(values):
        options = _with(config.unlearner, config.option, value)
        passes = _passes(problem, options)
        if spent + passes > config.max_passes:
            problem.tried.append({config.option: value, "not_tried": f"{passes:.2f} passes more"})
            continue
        spent += passes
        part = within(problem.progress, index / len(values), (index + 1) / len(values))
        model = _try(replace(problem, progress=part), options, {config.option: value})
        if model is None:
            continue
        score, found = judge.look(model)
        problem.tried.append({config.option: value, "passes": passes, **found})
        if score < least:
            best, least = model, score
    if best is None:
        raise Infeasible(f"no value of {config.option} could be tried to its end")
    problem.progress(1.0, {})
    return best


def _with(options: UnlearnerOptions, option: str, value: float) -> UnlearnerOptions:
    given = options.model_dump(exclude_unset=True) | {"name": options.name, option: value}
    return type(options).model_validate(given)


def _passes(problem: Problem, options: UnlearnerOptions) -> float:
    """Expected cost of a trial in passes over all training records."""
    situation = Situation(
        selector=problem.selector,
        num_forget=len(problem.forget),
        num_train=len(problem.forget) + len(need_retain(problem)),
        has_recipe=problem.recipe is not None,
        has_holdout=True,
        has_importance=problem.importance is not None,
        epochs=None if problem.recipe is None else problem.recipe.epochs,
    )
    method = METHODS.get(options.name, Method())
    passes = method.cost(situation, options.model_dump(mode="json"))
    if passes is None:
        raise Infeasible(f"max_passes can't be kept: nobody knows the cost of {options.name}")
    return passes


def _try(problem: Problem, options: UnlearnerOptions, value: dict[str, float]) -> nn.Module | None:
    """Return what the unlearner makes of the parent; None if it fails, and say why."""
    inner = replace(problem, model=copy.deepcopy(problem.model), tried=[], keeper=None)
    seed_everything(problem.seed)
    try:
        return unlearners[options.name].run(inner, options)
    except OutOfTime:
        raise
    except CoreError as error:
        problem.tried.append({**value, "failed": f"{error.code}: {error}"})
        return None
    finally:
        problem.tried.extend({**value, "trial": entry} for entry in inner.tried)


@dataclass
class _Judge:
    """The parent's accuracies, and how far a trial is from what they should become."""

    problem: Problem

    def __post_init__(self) -> None:
        problem = self.problem
        self._guard = Guard(problem, 1.0)
        self._retained = sample(need_retain(problem), problem.seed)
        self._before = self._accuracy(problem.model)
        # what a forgotten record should look like: as the parent does where it has seen nothing
        self._unseen = self._guard.measure(problem.model).target - ALLOWANCE
        self._by_rule = problem.selector != "class" and problem.purpose == "erasure"

    def look(self, model: nn.Module) -> tuple[tuple[float, float], dict[str, Any]]:
        """Score, the less the better, and what it rests on.

        What is recognised beyond chance comes before utility where a class or poison is to go.
        """
        trial, retained = self._guard.measure(model), self._accuracy(model)
        utility = abs(self._before - retained) + abs(trial.utility_drop)
        if self._by_rule:
            score = 0.0, utility + abs(trial.forget_accuracy - self._unseen)
        else:
            score = max(0.0, trial.forget_accuracy - trial.target), utility
        return score, trial.as_dict() | {"retain_accuracy": retained, "score": score[1]}

    def _accuracy(self, model: nn.Module) -> float:
        problem, records = self.problem, self._retained
        logits = gather(model, records, batch_size=problem.batch_size, device=problem.device)
        return accuracy(logits, records.labels)
