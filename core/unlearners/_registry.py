"""The registry of unlearners, apart so that every unlearner can import it."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Protocol

from torch import nn

from ..problem import Problem
from ..registry import Config, Registry
from ..situation import Estimator

Need = Literal["retain", "recipe", "holdout", "importance", "class", "images"]
"""``importance``: that of the full set must be stored, or be measured on retained records;
``class``: the request must name a class; ``images``: the records must be images."""


FROZEN_BATCHNORM = "frozen batch norm holds statistics of the parent's weights; keep 1"
"""What is wrong where options do not fit it."""


class UnlearnerOptions(Config):
    """Options of one unlearner, and what is fixed about it."""

    exact: ClassVar[bool] = False
    """Retrained-equivalent by construction."""
    needs: ClassVar[tuple[Need, ...]] = ()
    """What a problem must hold; without it the rung is skipped, and says so."""
    networks: ClassVar[tuple[str, ...]] = ()
    """Architectures it is for; empty for any. With another one the rung is skipped."""

    @property
    def is_exact(self) -> bool:
        """Whether these very options are exact; a composition depends on its parts."""
        return self.exact

    @property
    def all_needs(self) -> tuple[Need, ...]:
        """What these very options need; a composition needs what its parts need."""
        return self.needs

    @property
    def importance_taken(self) -> Estimator | None:
        """The importance that these very options take, where they take any."""
        return None

    @property
    def fits_frozen_batchnorm(self) -> bool:
        """Whether these very options make sense where running statistics stay the parent's."""
        return True

    @property
    def keeps_zeros(self) -> bool:
        """Whether zeros of a pruned parent are masks: not for an exact one, since the forget set
        had a part in them."""
        return not self.is_exact


class Unlearn(Protocol):
    """Change, and return, ``problem.model``; or return another model of the same shape."""

    __name__: str

    def __call__(self, problem: Problem, config: Any, /) -> nn.Module: ...


unlearners: Registry[Unlearn] = Registry("unlearner")
