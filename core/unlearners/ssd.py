"""Selective Synaptic Dampening.

Source: Foster, Schoepf, Brintrup, AAAI 2024, arXiv:2308.07707; adaptive percentile after Schoepf et
    al. 2024, arXiv:2402.10098 (ASSD); growing percentile after Schoepf et al. 2024,
    arXiv:2406.09173 (Potion); label-free importance after Foster et al. 2024, arXiv:2402.19308
    (LFSSD).
Differs: importance squares per-record gradients (the reference code: per-batch means) in eval
    mode, accumulated in float64. A per-record ratio can't exceed N / n_f, so a fixed alpha does
    not fit it: by default the strength is searched on tuning records, and ``alpha`` is taken with
    ``estimator: batch`` only. Batch norm is recalibrated on retained records after each edit;
    without any its statistics stay, and the record of trials says so. ``mas`` reads no label, but
    guarded and potion do, to judge their trials.
Cost: one forward and backward pass over the forget set where the importance of the full set is
    stored, else over the full set too; up to 8 trials of forward passes over at most 1 000 forget,
    1 000 tuning and 512 retained records, for potion up to ``max_growths`` without the tuning
    records. Memory: six copies of the weights.
Promise: approximate. A cluster within a label is forgotten down to never-seen records of that
    label, its siblings among them, which may be more than a retrained model would recognise; where
    the parent is there already, the guarded search selects no less than adaptive would.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import nn

from .. import batchnorm
from ..dampening import Dampening
from ..errors import Infeasible
from ..measures import accuracy
from ..methods import ESTIMATORS
from ..problem import Problem
from ..registry import misfit
from ..scores import gather
from ..situation import Estimator
from ._batchnorm import settle
from ._guard import Guard, sample
from ._importances import IMPORTANCE_SHARE, importances
from ._registry import Need, UnlearnerOptions, unlearners

MOST_SELECTED = 0.2
"""Largest fraction of the weights that the search selects."""

_TRIAL_RECALIBRATION = 512


class SSDConfig(UnlearnerOptions):
    """Shrink the weights that the forget set leans on most."""

    name: Literal["ssd"] = "ssd"
    estimator: Literal["persample", "batch", "mas"] = Field(
        "persample",
        description="Importance: squared gradients per record, per batch, or label-free (mas).",
    )
    selection: Literal["guarded", "adaptive", "potion", "alpha"] | None = Field(
        None,
        description="guarded searches the fraction of weights on tuning records; adaptive takes "
        "ln(1 + 100 n_f/N) percent; potion grows that until target_accuracy is reached; alpha is a "
        "fixed ratio. Left out: alpha where alpha is given, else guarded.",
    )
    alpha: float | None = Field(
        None,
        gt=0,
        le=1e4,
        description="Select where forget importance > alpha x full importance; only with "
        "estimator batch.",
    )
    lam: float = Field(
        1.0, ge=0, le=10, description="Dampening constant; larger changes less, 0 zeroes."
    )
    max_utility_drop: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Largest drop of tuning accuracy that the guarded search accepts, as a share.",
    )
    max_trials: int = Field(8, ge=1, le=8, description="Most trials of the guarded search.")
    target_accuracy: float = Field(
        0.2,
        ge=0,
        lt=1,
        description="For potion: stop at this share of the parent's accuracy on the forget set.",
    )
    growth: float = Field(
        1.1,
        gt=1,
        le=2,
        description="For potion: factor between the fractions of weights of two trials.",
    )
    max_growths: int = Field(100, ge=1, le=500, description="For potion: most trials.")

    source: ClassVar[str] = "Foster, Schoepf, Brintrup, AAAI 2024, arXiv:2308.07707"

    @model_validator(mode="after")
    def _alpha_fits(self) -> Self:
        if self.alpha is not None and self.estimator != "batch":
            raise misfit(
                self,
                "alpha",
                "alpha is for estimator batch: a per-record ratio can't exceed N / n_f, so a "
                "fixed alpha may select nothing",
            )
        if (self.alpha is not None) != (self.chosen_selection == "alpha"):
            raise misfit(self, "selection", "alpha and selection alpha go together")
        return self

    @property
    def all_needs(self) -> tuple[Need, ...]:
        """Only the guarded search looks at tuning records."""
        is_guarded = self.chosen_selection == "guarded"
        return ("importance", "holdout") if is_guarded else ("importance",)

    @property
    def importance_taken(self) -> Estimator:
        """As ``estimator`` says."""
        return ESTIMATORS[self.estimator]

    @property
    def chosen_selection(self) -> Literal["guarded", "adaptive", "potion", "alpha"]:
        """The selection that is used."""
        return self.selection or ("guarded" if self.alpha is None else "alpha")


@unlearners
def ssd(problem: Problem, config: SSDConfig) -> nn.Module:
    """Dampen in place, and return, ``problem.model``.

    Raises:
        Infeasible: if the guarded search finds no strength that forgets and keeps utility, or
            potion none that forgets.
        MissingEvidence: if importance of the full set is neither stored nor can be computed.
    """
    problem.keep_masks(problem.model)
    full, forget = importances(problem, config.importance_taken)
    dampening = Dampening(
        problem.model,
        full.values,
        forget.values,
        config.lam,
        most=MOST_SELECTED if config.chosen_selection == "guarded" else 1.0,
        masks=problem.masks,
    )
    if dampening.foreign:
        found = {"foreign_weights": dampening.foreign, "reason": "their full importance is 0"}
        problem.tried.append(found)
    fraction = adaptive_fraction(forget.n, full.n)
    match config.chosen_selection:
        case "guarded":
            _search(problem, config, dampening, fraction)
        case "adaptive":
            selected = dampening.select_top(round(fraction * dampening.size))
            problem.tried.append({"fraction": fraction, "selected": selected})
        case "potion":
            _grow(problem, config, dampening, fraction)
        case "alpha":
            assert config.alpha is not None
            selected = dampening.select_above(config.alpha)
            problem.tried.append({"alpha": config.alpha, "selected": selected})
    if not settle(problem, problem.model) and batchnorm.has_batchnorm(problem.model):
        problem.tried.append({"batch_norm": "running statistics are the parent's"})
    problem.progress(1.0, {})
    return problem.model


def adaptive_fraction(num_forget: int, num_full: int) -> float:
    """Fraction of the weights that ASSD selects: ln(1 + 100 n_f/N) percent.

    Example:
        >>> round(100 * adaptive_fraction(10, 100), 2)
        2.4
    """
    return math.log1p(100 * num_forget / num_full) / 100


def _search(problem: Problem, config: SSDConfig, dampening: Dampening, adaptive: float) -> None:
    """Bisect the fraction of weights, geometrically, each trial from the parent.

    ``adaptive`` is the least fraction where accuracy can't say how little is enough.
    """
    # Recalibration costs or wins utility of its own; only what dampening adds may end the search.
    # What both cost together is for the gates.
    settle(problem, problem.model, _TRIAL_RECALIBRATION)
    guard = Guard(problem, config.max_utility_drop)
    low, high = 1 / dampening.size, MOST_SELECTED
    if problem.selector != "class" and guard.measure(problem.model).forgot:
        # A cluster within a label, for one: to shrink a single weight would pass for forgetting.
        problem.tried.append({"forgotten_by": "the parent", "least_fraction": adaptive})
        low = adaptive
    best: int | None = None
    for trial in range(config.max_trials):
        problem.check_time()
        fraction = math.sqrt(low * high)
        count = max(1, round(fraction * dampening.size))
        selected = dampening.select_top(count)
        settle(problem, problem.model, _TRIAL_RECALIBRATION)
        result = guard.measure(problem.model)
        problem.tried.append({"fraction": fraction, "selected": selected, **result.as_dict()})
        problem.progress(
            IMPORTANCE_SHARE + (1 - IMPORTANCE_SHARE) * (trial + 1) / (config.max_trials + 1),
            {"fraction": fraction, "forget_accuracy": result.forget_accuracy},
        )
        if not result.forgot and not result.kept_utility:
            break
        if result.forgot and result.kept_utility:
            best = count
        low, high = (low, fraction) if result.forgot else (fraction, high)
    if best is None:
        raise Infeasible("no fraction of the weights forgets enough and keeps the utility")
    dampening.select_top(best)


def _grow(problem: Problem, config: SSDConfig, dampening: Dampening, fraction: float) -> None:
    """Enlarge the fraction of weights, each trial from the parent, until enough is forgotten."""
    some = sample(problem.forget, problem.seed)

    def recognised() -> float:
        logits = gather(problem.model, some, batch_size=problem.batch_size, device=problem.device)
        return accuracy(logits, some.labels)

    target = config.target_accuracy * recognised()
    for trial in range(config.max_growths):
        problem.check_time()
        selected = dampening.select_top(max(1, round(fraction * dampening.size)))
        settle(problem, problem.model, _TRIAL_RECALIBRATION)
        found = recognised()
        problem.tried.append(
            {
                "fraction": fraction,
                "selected": selected,
                "forget_accuracy": found,
                "target": target,
                "forgot": found <= target,
            }
        )
        problem.progress(
            IMPORTANCE_SHARE + (1 - IMPORTANCE_SHARE) * (trial + 1) / (config.max_growths + 1),
            {"fraction": fraction, "forget_accuracy": found},
        )
        if found <= target:
            return
        if selected == dampening.selectable:
            break
        fraction = min(1.0, fraction * config.growth)
    raise Infeasible("no fraction of the weights that was tried forgets enough")
