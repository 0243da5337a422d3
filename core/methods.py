"""What is known of each unlearner before it runs: needs, cost, and whom it suits. Free of torch.

The store and the supervisor choose rungs without loading torch, so they cannot ask the registry;
a test holds every entry here against the registered options.

Costs are in passes: forward and backward over all training records, to the last epoch; looks at
tuning records, which may end it earlier, are left out.

Source: the tables of inputs and costs of the papers named in ``core/unlearners``.
"""

from __future__ import annotations

import math
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .situation import Estimator, Situation

FORWARD = 1 / 3
"""Of a pass; backward is the rest."""

BATCH_SIZE = 256
"""Of requests that name none."""

Options = Mapping[str, Any]
"""An unlearner's config, as far as it is given."""

Cost = Callable[[Situation, Options], float | None]

ESTIMATORS: dict[str, Estimator] = {
    "persample": "fisher_persample",
    "batch": "fisher_batch",
    "mas": "mas",
}
"""Option of an unlearner -> the importance that it takes."""

NEEDS_IN_WORDS = {
    "retain": "training records that stay",
    "recipe": "the recipe of the model",
    "holdout": "a holdout",
    "importance": "stored importance of its estimator, or training records to measure it on",
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
    cost: Cost = lambda *_: None
    """Expected passes; None where nobody can say."""
    estimator: Callable[[Options], Estimator] | None = None
    """The importance that it takes, where it takes any."""


def missing(method: Method, situation: Situation, options: Options) -> str | None:
    """Return the first thing that the method needs and the situation lacks, as its name.

    The name is a need, ``network``, or None if nothing is missing.
    """
    lacks = {
        "importance": not situation.has_retain and not _fits(method, situation, options),
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


def _fits(method: Method, situation: Situation, options: Options) -> bool:
    """Whether stored importance is of the estimator that these options take, as far as is known."""
    if not situation.has_importance or method.estimator is None or situation.estimator is None:
        return situation.has_importance
    return method.estimator(options) == situation.estimator


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


def _full(epochs: float) -> Cost:
    return lambda _, options: _epochs(options, epochs)


def _retained(epochs: float, *, more: float = 0.0) -> Cost:
    """``epochs`` over the retain set, and ``more`` passes over it whatever the options."""
    return lambda situation, options: (_epochs(options, epochs) + more) * (1 - situation.share)


def _forgotten(epochs: float, *, each: float = 1.0) -> Cost:
    return lambda situation, options: each * _epochs(options, epochs) * situation.share


def _paired(
    epochs: float, *, each: float = 1.0, again: float = 0.0, of_retain: float = 1.0
) -> Cost:
    """``epochs`` over the retain set with a forget batch beside each of its batches.

    Args:
        epochs: by default.
        each: passes per batch.
        again: passes over the retain batch alone.
        of_retain: share of the retain set, by default.
    """

    def cost(situation: Situation, options: Options) -> float:
        share = float(options.get("share", of_retain))
        retained, beside = _epoch(situation, share)
        return _epochs(options, epochs) * (each * (retained + beside) + again * retained)

    return cost


def _epoch(situation: Situation, share: float) -> tuple[float, float]:
    """Passes of one epoch over this share of the retain set, and of the forget batches beside."""
    retained = share * (1 - situation.share)
    if situation.num_train is None or situation.num_forget == 0:
        return retained, retained
    steps = math.ceil(retained * situation.num_train / BATCH_SIZE)
    forget = situation.num_forget / math.ceil(situation.num_forget / BATCH_SIZE)
    return retained, steps * forget / situation.num_train


def _epochs(options: Options, default: float) -> float:
    return float(options.get("epochs") or default)


def _retraining(situation: Situation, _: Options) -> float | None:
    return None if situation.epochs is None else situation.epochs * (1 - situation.share)


def _sharded(situation: Situation, options: Options) -> float | None:
    """Retraining of the members whose shard holds a forget record, as many as are expected."""
    whole, members = _retraining(situation, options), situation.members
    if whole is None or members is None:
        return whole
    return whole * (1 - (1 - 1 / members) ** situation.num_forget)


def _tuning(situation: Situation, options: Options) -> float:
    epochs = 5.0
    if options.get("schedule") == "one_cycle" and situation.epochs is not None:
        epochs = max(1.0, situation.epochs / 4)
    return _epochs(options, epochs) * (1 - situation.share)


def _pruned(situation: Situation, options: Options) -> float | None:
    """The ten epochs in which ``omp`` recovers, and what ``then`` costs."""
    prune, then = options.get("prune", {"name": "omp"}), options.get("then", {"name": "fine_tune"})
    cost = METHODS[then["name"]].cost(situation, then) if then["name"] in METHODS else None
    if cost is None or prune["name"] != "omp":
        return None
    return cost + _epochs(prune, 10) * (1 - situation.share)


def _tried(situation: Situation, options: Options) -> float | None:
    """Every value's cost, as far as the budget reaches; four values where none are given."""
    inner = options.get("unlearner", {"name": "eupmu"})
    cost = METHODS[inner["name"]].cost(situation, inner) if inner["name"] in METHODS else None
    values = options.get("values") or range(4)
    budget = float(options.get("max_passes", 20))
    return None if cost is None else min(budget, len(values) * cost)


def _scrubbing(situation: Situation, options: Options) -> float:
    forget = float(options.get("max_epochs", 3)) * situation.share
    return (1 + FORWARD) * (_epochs(options, 10) * (1 - situation.share) + forget)


def _salient(situation: Situation, options: Options) -> float | None:
    descent = _paired(10)(situation, options)
    return None if descent is None else descent + situation.share


def _contrasted(situation: Situation, options: Options) -> float:
    return _epochs(options, 5) * (1 - situation.share) + 2 * situation.share


def _impaired(situation: Situation, options: Options) -> float:
    """Of each class that stays at most ``per_class`` records, if all classes are of one size."""
    epochs = options.get("impair_epochs", 1) + options.get("repair_epochs", 5)
    drawn = min(1.0, options.get("per_class", 500) / max(1, situation.num_forget))
    return float(epochs * drawn * (1 - situation.share))


def _curved(situation: Situation, options: Options) -> float:
    """A gradient of all records, and twice as much of a sample per iteration."""
    samples = options.get("samples", 1000) / (situation.num_train or 1000)
    return float(1 + 2 * options.get("cg_iters", 30) * min(1.0, samples))


def _noisy(situation: Situation, options: Options) -> float:
    return float(options.get("passes", 1) + FORWARD) * (1 - situation.share)


def _dampening(situation: Situation, _: Options) -> float:
    return situation.share if situation.has_importance else 1 + situation.share


def _estimator(options: Options) -> Estimator:
    chosen = options.get("then", options)
    return ESTIMATORS[chosen.get("estimator", "persample")]


_RETAIN = ("retain",)

METHODS: dict[str, Method] = {
    # exact
    "retrain": Method(exact=True, needs=("retain", "recipe"), cost=_retraining),
    "ridge_head": Method(exact=True, needs=_RETAIN, networks=("linear",), cost=_full(0.5)),
    "sisa": Method(exact=True, needs=("retain", "recipe"), networks=("ensemble",), cost=_sharded),
    # retained records only
    "fine_tune": Method(needs=_RETAIN, cost=_tuning),
    "l1_sparse": Method(needs=_RETAIN, cost=_retained(10)),
    "prune_first": Method(needs=("retain", "recipe"), cost=_pruned, estimator=_estimator),
    "rbm": Method(needs=_RETAIN, cost=_retained(5, more=1)),
    # forget records, with or without stored state
    "ssd": Method(needs=("importance", "holdout"), cost=_dampening, estimator=_estimator),
    "gradient_ascent": Method(cost=_forgotten(20)),
    "delete": Method(cost=_forgotten(10, each=1 + FORWARD)),
    # both
    "random_label": Method(needs=_RETAIN, cost=_full(5)),
    "salun": Method(needs=_RETAIN, cost=_salient),
    "ce_ft": Method(needs=_RETAIN, cost=_paired(5)),
    "ice_ft": Method(needs=_RETAIN, cost=_paired(5)),
    "kl_ft": Method(needs=_RETAIN, cost=_paired(5)),
    "neggrad_plus": Method(needs=_RETAIN, cost=_paired(5)),
    "scrub": Method(needs=_RETAIN, cost=_scrubbing),
    "bad_teacher": Method(needs=_RETAIN, cost=_paired(5, each=1 + FORWARD, of_retain=0.3)),
    "msg": Method(needs=_RETAIN, cost=_contrasted),
    "unsir": Method(needs=("retain", "class", "images"), cost=_impaired),
    "eupmu": Method(needs=_RETAIN, cost=_paired(5, again=FORWARD)),
    "ungrad": Method(needs=_RETAIN, cost=_paired(5)),
    "linear_weighting": Method(needs=_RETAIN, cost=_paired(5)),
    "pcgrad": Method(needs=_RETAIN, cost=_paired(5)),
    "famo": Method(needs=_RETAIN, cost=_paired(5, each=1 + FORWARD)),
    "munba": Method(needs=_RETAIN, cost=_paired(5)),
    "tuned": Method(needs=("retain", "holdout"), cost=_tried),
    # curvature
    "fisher_forgetting": Method(needs=_RETAIN, cost=_noisy),
    "influence": Method(needs=_RETAIN, cost=_curved),
}
"""Name -> facts; a registered unlearner that is not here is never recommended, only taken."""
