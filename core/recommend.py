"""Which unlearners suit a situation, in which order, and why the others do not. Free of torch.

``RULES`` is read from top to bottom: every rule whose situation holds adds its picks behind those
of the rules above it, and leaves out what it avoids unless a rule above it picks that. Policies cut
the list to a ladder.

Source: the comparisons of Jia et al., arXiv:2304.04934; Foster et al., arXiv:2308.07707; Cadet et
al., arXiv:2410.01276; and what each pick's own paper claims.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict

from .methods import Method, known, missing, why_missing
from .situation import LARGE_SHARE, MANY_EARLIER, SMALL_REQUEST, Situation

MOST_APPROXIMATE = 3
"""Approximate rungs of a ladder."""

MOST_SPENT = 1 / 3
"""Share of a retraining that approximate rungs ahead of it may cost together; the first one is
tried whatever it costs."""

FEW_RECORDS = 50


class Candidate(BaseModel):
    """One rung to try."""

    model_config = ConfigDict(frozen=True)

    unlearner: dict[str, Any]
    """Name and options; what is not named has its default."""
    exact: bool
    reason: str
    passes: float | None
    """Expected cost: forward and backward passes over all training records."""
    seconds: float | None
    """The same in time, where the speed of this model has been measured."""


class LeftOut(BaseModel):
    """A registered unlearner that is not recommended."""

    model_config = ConfigDict(frozen=True)

    name: str
    reason: str


class Recommendation(BaseModel):
    """The ladder of a situation, and what was left out of it."""

    model_config = ConfigDict(frozen=True)

    candidates: list[Candidate]
    left_out: list[LeftOut]


@dataclass(frozen=True)
class Rule:
    """One row of the table: a situation, what to try in it, and what not."""

    situation: str
    when: Callable[[Situation], bool]
    picks: Mapping[str, str] = field(default_factory=dict)
    """Name -> why, best first."""
    avoid: Mapping[str, str] = field(default_factory=dict)
    """Name -> why."""
    options: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    """Options that an unlearner needs here, whichever rule picks it."""
    remarks: Mapping[str, str] = field(default_factory=dict)
    """Name -> what to know of it here, whichever rule picks it."""


CYCLE = {"fine_tune": {"schedule": "one_cycle"}}
CYCLE_WHY = "a perturbed start and a high rate lose what was memorised, in a quarter of the epochs"

RULES = (
    Rule(
        "exact routes",
        lambda s: s.has_retain,
        picks={
            "ridge_head": "a closed form retrains the head without the records, in moments",
            "sisa": "only the shards that saw the records are trained again",
            "retrain": "a new network never sees the records",
        },
    ),
    Rule(
        "poison that is known in part",
        lambda s: s.purpose == "poison_removal",
        picks={
            "ssd": "dampens what the known poison leans on, and reaches the unknown one too",
            "prune_first": "a sparse network has fewer places for a trigger",
            "l1_sparse": "drives weights that only the poison uses to zero",
            "neggrad_plus": "unlearns the known poison against the retained records",
        },
        avoid={
            "random_label": "random labels are one more poison for the same trigger",
            "salun": "random labels are one more poison for the same trigger",
        },
        options={"ssd": {"selection": "potion", "target_accuracy": 0.1}},
    ),
    Rule(
        "importance of batches",
        lambda s: not s.has_retain and s.estimator == "fisher_batch",
        options={"ssd": {"estimator": "batch"}},
    ),
    Rule(
        "importance without labels",
        lambda s: not s.has_retain and s.estimator == "mas",
        options={"ssd": {"estimator": "mas"}},
    ),
    Rule(
        "batch norm without records to measure it on",
        lambda s: not s.has_retain and bool(s.has_batchnorm),
        remarks={
            "ssd": "its statistics stay those of the weights before they were dampened, which only "
            "the guard of its search holds in check",
            "delete": "it trains around statistics that stay, which has cost more utility than "
            "dampening",
        },
    ),
    Rule(
        "only records to forget that are no class",
        lambda s: not s.has_retain and s.has_importance and s.selector == "records",
        picks={
            "ssd": "finds weights of a cluster, such as a sub-class; random records have none, and "
            "its search then says so",
        },
    ),
    Rule(
        "only the records to forget",
        lambda s: not s.has_retain and s.has_importance,
        picks={
            "ssd": "the stored importance stands in for the training records",
            "delete": "distils the model into itself without what it says of the records",
        },
        avoid={"gradient_ascent": "nothing would hold the utility"},
    ),
    Rule(
        "only the records to forget, and nothing stored",
        lambda s: not s.has_retain and not s.has_importance,
        avoid=dict.fromkeys(
            ("ssd", "delete", "gradient_ascent"),
            "without training records or stored importance no method is reliable",
        ),
    ),
    Rule(
        "a few records",
        lambda s: s.selector == "records" and s.num_forget <= FEW_RECORDS,
        picks={"influence": "one Newton step is accurate for a few records"},
    ),
    Rule(
        "a large share of the data",
        lambda s: s.is_large,
        picks={"eupmu": "has been shown to work for half of the data"},
        avoid={
            "influence": "the linearisation does not reach so far",
            "ssd": "the importance of so many records is that of all",
        },
    ),
    Rule(
        "many approximate requests in a row",
        lambda s: s.num_earlier >= MANY_EARLIER,
        avoid={
            **dict.fromkeys(
                ("ssd", "gradient_ascent", "delete"), "repeated, its damage compounds and stays"
            ),
            **dict.fromkeys(
                ("influence", "fisher_forgetting"), "its curvature goes stale with every request"
            ),
        },
    ),
    Rule(
        "layer norm, as in transformers",
        lambda s: s.has_layernorm and s.has_retain,
        picks={
            "neggrad_plus": "the strongest baseline there; rankings and rates of networks with "
            "batch norm do not carry over",
            "salun": "changes the salient half of the weights only",
            "eupmu": "keeps the utility while it forgets",
        },
    ),
    Rule(
        "a whole class",
        lambda s: s.selector == "class",
        picks={
            "fine_tune": CYCLE_WHY,
            "ssd": "a class has weights of its own; one pass over its records",
            "eupmu": "keeps the utility while it forgets",
            "l1_sparse": "a sparse network forgets a class with little loss",
            "random_label": "moves the class's records to the other classes",
            "unsir": "overwrites the class with noise made for it, then repairs",
            "delete": "distils the class's logit away",
        },
        options=CYCLE,
    ),
    Rule(
        "records spread over the classes",
        lambda s: s.selector == "records" and s.has_retain,
        picks={
            "fine_tune": CYCLE_WHY,
            "eupmu": "keeps the utility while it forgets",
            "salun": "changes the salient half of the weights only",
            "neggrad_plus": "a strong baseline: both losses in every step",
            "l1_sparse": "a sparse network forgets records with little loss",
            "scrub": "drives the records away from what the parent says of them",
            "msg": "starts anew where forget and retain gradients agree",
            "random_label": "bounded, but it moves decisions rather than memory",
        },
        options=CYCLE,
        avoid={
            "ssd": "random records share their weights with all others: nothing is selected",
            "fisher_forgetting": "its noise costs utility and forgets few records",
        },
    ),
)


def recommend(
    situation: Situation, methods: Mapping[str, Method] | Iterable[str] | None = None
) -> Recommendation:
    """Return the ladder of a situation with its reasons.

    Args:
        situation: of the request.
        methods: what is registered, as facts or as names; by default all that is.
    """
    facts = methods if isinstance(methods, Mapping) else known(methods)
    if situation.unlearner is not None:
        return _asked_for(situation, facts)
    rules = [rule for rule in RULES if rule.when(situation)]
    left_out = {
        name: reason
        for name, method in facts.items()
        if (reason := _why_not(name, method, situation, rules))
    }
    ranked = _ranked(situation, facts, rules, left_out)
    chosen = _cut(situation, ranked)
    names = {candidate.unlearner["name"] for candidate in chosen}
    for candidate in ranked:
        left_out.setdefault(candidate.unlearner["name"], _outranked(situation))
    for name in facts:
        left_out.setdefault(name, "nothing speaks for it here; it can be asked for by name")
    return Recommendation(
        candidates=chosen,
        left_out=[
            LeftOut(name=name, reason=reason)
            for name, reason in sorted(left_out.items())
            if name not in names
        ],
    )


def _asked_for(situation: Situation, facts: Mapping[str, Method]) -> Recommendation:
    assert situation.unlearner is not None
    name = situation.unlearner["name"]
    method = facts.get(name, Method())
    asked = _candidate(situation, situation.unlearner, method, "asked for by name")
    others = [LeftOut(name=each, reason="not asked for") for each in sorted(facts) if each != name]
    return Recommendation(candidates=[asked], left_out=others)


def _ranked(
    situation: Situation,
    facts: Mapping[str, Method],
    rules: Iterable[Rule],
    left_out: Mapping[str, str],
) -> list[Candidate]:
    """Every pick that may be tried, best first, each with its first reason."""
    found: dict[str, Candidate] = {}
    for rule in rules:
        for name, why in rule.picks.items():
            if name in found or name in left_out or name not in facts:
                continue
            config = _config(name, rules)
            reason = "; ".join([f"{rule.situation}: {why}", *_remarks(name, rules)])
            found[name] = _candidate(situation, config, facts[name], reason)
    return [*found.values()]


def _remarks(name: str, rules: Iterable[Rule]) -> list[str]:
    return [f"{rule.situation}: {rule.remarks[name]}" for rule in rules if name in rule.remarks]


def _cut(situation: Situation, ranked: list[Candidate]) -> list[Candidate]:
    """Return the ladder: exact routes where the policy and the situation want them."""
    exact = [candidate for candidate in ranked if candidate.exact]
    approximate = [candidate for candidate in ranked if not candidate.exact]
    if first := _why_exact_first(situation):
        said = [c.model_copy(update={"reason": f"{first}; {c.reason}"}) for c in exact]
        rungs = [*said, *approximate[:MOST_APPROXIMATE]]
    elif situation.purpose == "poison_removal":
        rungs = [*approximate[:MOST_APPROXIMATE], *exact]
    else:
        rungs = [*_affordable(approximate, exact), *exact]
    return rungs[:1] if situation.policy == "fast" else rungs


def _affordable(ranked: list[Candidate], exact: list[Candidate]) -> list[Candidate]:
    """Return the rungs to try, best first: one that costs too much gives way to the next.

    Where a cost is not known, nothing is held against it.
    """
    limit = MOST_SPENT * min((c.passes for c in exact if c.passes is not None), default=math.inf)
    chosen, spent = ranked[:1], sum(c.passes or 0.0 for c in ranked[:1])
    for candidate in ranked[1:]:
        cost = candidate.passes or 0.0
        if len(chosen) < MOST_APPROXIMATE and spent + cost <= limit:
            chosen.append(candidate)
            spent += cost
    return chosen


def _why_exact_first(situation: Situation) -> str | None:
    if situation.budget_spent is not None:
        return f"budget spent ({situation.budget_spent}): retrain first"
    if situation.purpose == "poison_removal":  # retraining would keep what is not known
        return None
    if situation.is_large:
        return f"over {100 * LARGE_SHARE:g} % of the data: retraining costs little more"
    if situation.is_small:
        return (
            f"below {SMALL_REQUEST} records a population attack has no power, and reference models "
            "do not stand in for it: their attack passes models that over-forgot"
        )
    return None


def _why_not(name: str, method: Method, situation: Situation, rules: Iterable[Rule]) -> str | None:
    """Why an unlearner may not be tried at all; None if it may."""
    if not method.exact and situation.policy == "exact":
        return "the exact policy tries exact routes only"
    if not method.exact and not situation.has_holdout:
        return "it is approximate, and without a holdout nothing could judge it"
    if need := missing(method, situation, _config(name, rules)):
        return why_missing(need, method)
    for rule in rules:
        if name in rule.avoid and not any(name in other.picks for other in _before(rule, rules)):
            return f"{rule.situation}: {rule.avoid[name]}"
    passes, seconds = _cost(situation, method, _config(name, rules))
    budget = situation.time_budget_seconds
    if budget is not None and seconds is not None and seconds > budget:
        return f"about {seconds:.0f} s are expected ({passes:.1f} passes), {budget:g} s are allowed"
    return None


def _before(rule: Rule, rules: Iterable[Rule]) -> list[Rule]:
    """The rules above one: what they pick, it does not forbid."""
    above: list[Rule] = []
    for other in rules:
        if other is rule:
            break
        above.append(other)
    return above


def _outranked(situation: Situation) -> str:
    if situation.policy == "fast":
        return "the fast policy takes the first rung alone"
    return (
        f"at most {MOST_APPROXIMATE} approximate rungs are tried, for at most "
        f"{100 * MOST_SPENT:.0f} % of a retraining, and others rank higher"
    )


def _config(name: str, rules: Iterable[Rule]) -> dict[str, Any]:
    """Return the config of an unlearner: of two rules about one option the first one decides."""
    config: dict[str, Any] = {"name": name}
    for rule in rules:
        config = {**rule.options.get(name, {}), **config}
    return config


def _candidate(
    situation: Situation, config: dict[str, Any], method: Method, reason: str
) -> Candidate:
    passes, seconds = _cost(situation, method, config)
    return Candidate(
        unlearner=config, exact=method.exact, reason=reason, passes=passes, seconds=seconds
    )


def _cost(
    situation: Situation, method: Method, config: Mapping[str, Any]
) -> tuple[float | None, float | None]:
    passes = method.cost(situation, config)
    if passes is None or situation.seconds_per_pass is None:
        return passes, None
    return passes, passes * situation.seconds_per_pass
