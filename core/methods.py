"""What is known of each unlearner before it runs: needs, cost, and whom it suits. Free of torch.

The store and the supervisor choose rungs without loading torch, so they cannot ask the registry;
a test holds every entry here against the registered options.

Costs are in passes: forward and backward over all training records.

Source: the tables of inputs and costs of the papers named in ``core/unlearners``.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from .situation import Situation

Cost = Callable[[Situation], float | None]

NEEDS_IN_WORDS = {
    "retain": "training records that stay",
    "recipe": "the recipe of the model",
    "holdout": "a holdout",
    "class": "a request that names a class",
    "images": "records that are images",
}
"""Need -> what it is, in words."""


@dataclass(frozen=True)
class Method:
    """Facts about one unlearner."""

    exact: bool = False
    needs: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    """Names of the networks it is for; empty means any."""
    cost: Cost = lambda _: None
    """Expected passes; None where nobody can say."""


def missing(method: Method, situation: Situation) -> str | None:
    """Return the first thing that the method needs and the situation lacks, as its name.

    The name is a need, ``network``, or None if nothing is missing.
    """
    lacks = {
        "retain": not situation.has_retain,
        "recipe": not situation.has_recipe,
        "holdout": not situation.has_holdout,
        "class": situation.selector != "class",
        "images": situation.modality == "features",
    }
    for need in method.needs:
        if lacks.get(need, False):
            return need
    known = situation.architecture is not None
    if known and method.networks and situation.architecture not in method.networks:
        return "network"
    return None


def why_missing(need: str, method: Method) -> str:
    """Return what is missing, in words."""
    if need == "network":
        return f"it is for the networks {', '.join(method.networks)} only"
    return f"it needs {NEEDS_IN_WORDS[need]}"


def registered(kind: str = "unlearners") -> frozenset[str]:
    """Names of the registered variants of a kind: the public files of its folder."""
    folder = Path(__file__).parent / kind
    return frozenset(
        module.name
        for module in pkgutil.iter_modules([str(folder)])
        if not module.name.startswith("_")
    )


def known(names: Iterable[str] | None = None) -> dict[str, Method]:
    """Return the facts about these unlearners, or about all that are registered."""
    chosen = registered() if names is None else names
    return {name: METHODS.get(name, Method()) for name in sorted(chosen)}


def _retained(passes: float) -> Cost:
    return lambda situation: passes * (1 - situation.share)


def _forgotten(passes: float) -> Cost:
    return lambda situation: passes * situation.share


def _both(passes: float) -> Cost:
    return lambda _: passes


def _retraining(situation: Situation) -> float | None:
    return None if situation.epochs is None else situation.epochs * (1 - situation.share)


def _cycle(situation: Situation) -> float:
    epochs = 5.0 if situation.epochs is None else max(1.0, situation.epochs / 3)
    return epochs * (1 - situation.share)


def _dampening(situation: Situation) -> float:
    return situation.share if situation.has_importance else 1 + situation.share


_RETAIN = ("retain",)

METHODS: dict[str, Method] = {
    # exact
    "retrain": Method(exact=True, needs=("retain", "recipe"), cost=_retraining),
    "ridge_head": Method(exact=True, needs=_RETAIN, networks=("linear",), cost=_both(0.5)),
    "sisa": Method(
        exact=True, needs=("retain", "recipe"), networks=("ensemble",), cost=_retraining
    ),
    # retained records only
    "fine_tune": Method(needs=_RETAIN, cost=_cycle),
    "l1_sparse": Method(needs=_RETAIN, cost=_retained(10)),
    "prune_first": Method(needs=("retain", "recipe"), cost=_retained(10)),
    "rbm": Method(needs=_RETAIN, cost=_retained(11)),
    # forget records, with or without stored state
    "ssd": Method(needs=("holdout",), cost=_dampening),
    "gradient_ascent": Method(cost=_forgotten(5)),
    "delete": Method(cost=_forgotten(10)),
    # both
    "random_label": Method(needs=_RETAIN, cost=_both(10)),
    "salun": Method(needs=_RETAIN, cost=_both(10)),
    "ce_ft": Method(needs=_RETAIN, cost=_both(10)),
    "ice_ft": Method(needs=_RETAIN, cost=_both(10)),
    "kl_ft": Method(needs=_RETAIN, cost=_both(10)),
    "neggrad_plus": Method(needs=_RETAIN, cost=_both(10)),
    "scrub": Method(needs=_RETAIN, cost=_retained(6)),
    "bad_teacher": Method(needs=_RETAIN, cost=_both(2)),
    "msg": Method(needs=_RETAIN, cost=_retained(5)),
    "unsir": Method(needs=("retain", "class", "images"), cost=_both(2)),
    "eupmu": Method(needs=_RETAIN, cost=_both(12)),
    "ungrad": Method(needs=_RETAIN, cost=_both(10)),
    "linear_weighting": Method(needs=_RETAIN, cost=_both(10)),
    "pcgrad": Method(needs=_RETAIN, cost=_both(10)),
    "famo": Method(needs=_RETAIN, cost=_both(12)),
    "munba": Method(needs=_RETAIN, cost=_both(10)),
    # curvature
    "fisher_forgetting": Method(needs=_RETAIN, cost=_retained(1)),
    "influence": Method(needs=_RETAIN, cost=_both(3)),
}
"""Name -> facts; a registered unlearner that is not here is never recommended, only taken."""
