"""Prune, then unlearn with the mask on.

Source: prune first, then unlearn; Jia et al., NeurIPS 2023, arXiv:2304.04934.
Differs: prunes when the request comes in, on the retain set alone (the paper prunes while it first
    trains, forget set included). Zeros are plain zeros from the first step to the last, with no
    second tensor under the mask that could still hold what the forget set left there. Before an
    exact unlearner the mask is made from a fresh initialisation.
Cost: that of the pruner and that of the unlearner; masks, a quarter of the weights.
Promise: that of ``then``. The pruned weights are exactly zero at the end.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, Self, cast

from pydantic import ConfigDict, Field, model_validator
from torch import nn

from .. import batchnorm, weights
from ..determinism import fresh_seed
from ..masks import both, holds
from ..problem import Problem
from ..pruners import Pruned, PrunerConfig, PrunerOptions, Pruning, pruners
from ..registry import misfit
from ..report import within
from ..situation import Estimator
from ._others import AnyBut, default
from ._registry import Need, UnlearnerOptions, unlearners


def _default_pruner() -> PrunerOptions:
    return cast("PrunerOptions", pruners["omp"].config.model_validate({"name": "omp"}))


class PruneFirstConfig(UnlearnerOptions):
    """Make the model sparse, then unlearn with any other unlearner while the zeros stay.

    It needs what its pruner and its unlearner need, and is exact where the unlearner is.
    """

    # the union below is complete only once every unlearner is registered
    model_config = ConfigDict(defer_build=True)

    name: Literal["prune_first"] = "prune_first"
    prune: PrunerConfig = Field(
        default_factory=_default_pruner,
        description="The pruner with its options. Left out: omp with its defaults.",
    )
    then: Annotated[UnlearnerOptions, AnyBut(frozenset({"prune_first", "tuned"}))] = Field(
        default_factory=lambda: default("fine_tune"),
        description="The unlearner with its options: any but compositions and those for certain "
        "networks. Left out: fine_tune with its defaults.",
    )

    source: ClassVar[str] = "Jia et al., NeurIPS 2023, arXiv:2304.04934"

    @property
    def is_exact(self) -> bool:
        """As exact as ``then``: its mask never saw the forget set either."""
        return self.then.is_exact

    @property
    def all_needs(self) -> tuple[Need, ...]:
        """What pruner and unlearner need; importance is not of weights that were pruned since."""
        moved = self.importance_taken is not None and self.prune.name != "zeros"
        again: tuple[Need, ...] = ("retain",) if moved else ()
        needs = (*self.needs, *self.prune.needs, *again, *self.then.all_needs)
        return tuple(dict.fromkeys(needs))

    @property
    def importance_taken(self) -> Estimator | None:
        """As of ``then``."""
        return self.then.importance_taken

    @property
    def fits_frozen_batchnorm(self) -> bool:
        """As of ``then``."""
        return self.then.fits_frozen_batchnorm

    @property
    def keeps_zeros(self) -> bool:
        """Where the pruner makes no mask of its own."""
        return self.prune.keeps_parent

    @model_validator(mode="after")
    def _mask_fits(self) -> Self:
        if self.then.is_exact and self.prune.keeps_parent:
            raise misfit(
                self,
                "prune",
                f"{self.then.name} is exact, but the mask of {self.prune.name} was made with the "
                "forget set; choose a pruner that makes a new one",
            )
        return self


@unlearners
def prune_first(problem: Problem, config: PruneFirstConfig) -> nn.Module:
    """Prune, and run ``then`` with the masks.

    Raises:
        MissingEvidence: if pruner or unlearner lack what they need.
        Infeasible: if the network can't be made that sparse, or has no zeros to keep.
    """
    problem.check_time()
    problem.keep_masks(problem.model)
    pruned = _prune(problem, config)
    masks = both(pruned.masks, problem.masks)
    # an exact unlearner starts anew, and checks itself against the parent
    model = problem.model if config.then.is_exact else pruned.model
    inner = replace(
        problem,
        model=model,
        masks=masks,
        importance=_matching(problem, model),
        progress=within(problem.progress, 0.5, 1.0),
    )
    inner.keep_masks(pruned.model)
    result = unlearners[config.then.name].run(inner, config.then)
    assert holds(result, masks), f"{config.then.name} moved weights that are pruned"
    return result


def _prune(problem: Problem, config: PruneFirstConfig) -> Pruned:
    anew = config.then.is_exact
    pruning = Pruning(
        model=problem.fresh(fresh_seed(problem.seed)) if anew else problem.model,
        fresh=problem.fresh,
        records=problem.retain,
        input_shape=tuple(problem.forget.images.shape[1:]),
        recipe=problem.recipe,
        seed=problem.seed,
        device=problem.device,
        trained=not anew,
        recover=not anew,
        progress=within(problem.progress, 0.0, 0.5),
        check_time=problem.check_time,
        keeper=problem.keeper,
    )
    frozen = problem.bn_policy == "frozen" and not anew
    with batchnorm.frozen(problem.model) if frozen else nullcontext():
        pruned = pruners[config.prune.name].run(pruning, config.prune)
    if frozen and pruned.model is not problem.model and batchnorm.has_batchnorm(pruned.model):
        problem.tried.append({"batch_norm": "not the parent's: the pruner starts anew"})
    problem.tried.append(
        {"prune": config.prune.model_dump(mode="json"), "sparsity": pruned.sparsity}
    )
    return pruned


def _matching(problem: Problem, model: nn.Module) -> Any:
    """Stored importance where the pruner left the weights that it was made for."""
    stored = problem.importance
    return stored if stored is not None and stored.weights == weights.digest(model) else None
