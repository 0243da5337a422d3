"""Forgetting gates: forget records held against never-seen records of the same class mix.

Where even a perfect model would pass such a comparison with less than 50 % probability, it is
inconclusive whatever was measured: too few records, or a parent that hardly memorised.

Poison carries labels that are wrong, so a clean model recognises less of it than of never-seen
records, and one full of poison no more: there its own accuracy counts, and the rest is reported.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from .attack import WIDEST_BAND, Population, allowed_band, population
from .errors import MissingEvidence
from .findings import Gate
from .intervals import (
    Estimate,
    equivalence_power,
    proportion,
    proportion_difference,
    proportion_null_sd,
)
from .measures import correct
from .problem import Evidence
from .situation import Purpose
from .verdicts import ENOUGH_POWER, LEVEL, Role, unmeasured, verdict_of

POISON_SHARE = 0.2
"""Of the parent's accuracy on known poison, what may stay; as the search of Potion has it
(Schoepf et al. 2024, arXiv:2406.09173)."""


def forgetting(evidence: Evidence, *, exact: bool) -> list[Gate]:
    """Return the forgetting gates alone, for instance of one request of several."""
    if evidence.selector == "class":
        gates = [class_accuracy(evidence), membership_auc(evidence)]
    else:
        gates = [membership_auc(evidence), forget_accuracy(evidence)]
    gates = for_purpose(gates, evidence.purpose)
    if evidence.purpose == "poison_removal":
        gates.insert(0, poison_accuracy(evidence))
    return _reported(gates) if exact else gates


def for_purpose(gates: Iterable[Gate], purpose: Purpose) -> list[Gate]:
    """Return gates that compare with never-seen data, reported alone where poison is removed."""
    return _reported(gates) if purpose == "poison_removal" else [*gates]


def poison_accuracy(evidence: Evidence) -> Gate:
    """Share of the known poison that still gets its label; there is no too little of it."""
    labels, count = evidence.forget.labels, len(evidence.forget)
    right = {
        which: int(correct(evidence.scores[which]["forget"], labels).sum())
        for which in ("before", "after")
    }
    parent = right["before"] / count
    band = (0.0, POISON_SHARE * parent)
    found = proportion(right["after"], count, level=LEVEL)
    interval = (found.low, found.high)
    return Gate(
        name="poison_accuracy",
        kind="forgetting",
        role="must_pass",
        measure="accuracy",
        value=found.value,
        interval=interval,
        band=band,
        verdict=verdict_of(interval, band),
        power=1.0 if proportion(0, count, level=LEVEL).high <= band[1] else 0.0,
        examples=count,
        reason=f"{100 * found.value:.1f} % of {count} known poison records still get their label "
        f"(parent {100 * parent:.1f} %), at most {100 * found.high:.1f} % with 95 % confidence; "
        f"{100 * band[1]:.1f} % are allowed",
    )


def membership_auc(evidence: Evidence, *, kappa: float | None = None) -> Gate:
    """AUC of the margin between forget records and never-seen ones of the same class mix.

    The band is half the parent's own distance at most, or ``kappa`` where that is given.
    """
    try:
        attack = population(evidence)
        before, after = attack.auc("before", level=LEVEL), attack.auc("after", level=LEVEL)
    except MissingEvidence as error:
        return unmeasured(
            "membership_auc", "forgetting", "auc_margin", (0.45, 0.55), "must_pass", str(error)
        )
    kappa = allowed_band(before.value - 0.5) if kappa is None else kappa
    power = attack.power(kappa)
    band = (0.5 - kappa, 0.5 + kappa)
    return _comparison(
        "membership_auc",
        "must_pass",
        "auc_margin",
        after,
        band,
        power,
        attack,
        f"an attack tells forget records from never-seen ones with AUC {after.value:.3f} "
        f"(parent {before.value:.3f}, a perfect model 0.5)",
    )


def forget_accuracy(evidence: Evidence, *, kappa: float | None = None) -> Gate:
    """Accuracy on forget records minus accuracy on never-seen ones of the same class mix.

    The band is half the parent's own distance at most, or ``kappa`` where that is given.
    """
    try:
        attack = population(evidence)
    except MissingEvidence as error:
        return unmeasured(
            "forget_accuracy",
            "forgetting",
            "accuracy_difference",
            (-0.05, 0.05),
            "must_not_fail",
            str(error),
        )
    before, after = _accuracy_gap(attack, "before")[0], _accuracy_gap(attack, "after")
    kappa = allowed_band(before.value) if kappa is None else kappa
    sd = proportion_null_sd(after[1], len(attack.match.forget), attack.match.effective)
    return _comparison(
        "forget_accuracy",
        "must_not_fail",
        "accuracy_difference",
        after[0],
        (-kappa, kappa),
        equivalence_power(kappa, sd, level=LEVEL),
        attack,
        f"accuracy on forget records is {100 * after[0].value:+.1f} points from never-seen ones "
        f"(parent {100 * before.value:+.1f})",
    )


def class_accuracy(evidence: Evidence) -> Gate:
    """Accuracy on never-seen records of a forgotten class; the worst one, where there are several.

    The upper end of the interval is a 95 % one-sided bound.
    """
    band = (0.0, 1 / evidence.num_classes)
    holdout = evidence.holdout
    classes = sorted(evidence.forget_classes)
    if holdout is None or not set(classes) <= set(holdout.labels.tolist()) or not classes:
        return unmeasured(
            "class_accuracy",
            "forgetting",
            "accuracy",
            band,
            "must_pass",
            "the holdout has no record of a forgotten class",
        )
    level = 1 - (1 - LEVEL) / len(classes)
    right = correct(evidence.scores["after"]["holdout"], holdout.labels)
    masks = [holdout.labels == label for label in classes]
    found = [proportion(int(right[m].sum()), int(m.sum()), level=level) for m in masks]
    worst = max(found, key=lambda estimate: estimate.high)
    interval = (max(e.low for e in found), worst.high)
    perfect = max(proportion(0, int(m.sum()), level=level).high for m in masks)
    return Gate(
        name="class_accuracy",
        kind="forgetting",
        role="must_pass",
        measure="accuracy",
        value=worst.value,
        interval=interval,
        band=band,
        verdict=verdict_of(interval, band),
        power=1.0 if perfect <= band[1] else 0.0,
        examples=sum(int(m.sum()) for m in masks),
        reason=f"the forgotten class is recognised in {100 * worst.value:.1f} % of never-seen "
        f"records, at most {100 * worst.high:.1f} % with 95 % confidence; chance is "
        f"{100 * band[1]:.1f} %",
    )


def _reported(gates: Iterable[Gate]) -> list[Gate]:
    return [gate.model_copy(update={"role": "reported"}) for gate in gates]


def _comparison(
    name: str,
    role: Role,
    measure: str,
    estimate: Estimate,
    band: tuple[float, float],
    power: float,
    attack: Population,
    what: str,
) -> Gate:
    interval = (estimate.low, estimate.high)
    count = len(attack.match.forget)
    enough = power >= ENOUGH_POWER
    odds = (
        f"a perfect model would pass with probability {power:.2f} ({count} forget records, "
        f"{len(attack.match.others)} never-seen ones, band +-{(band[1] - band[0]) / 2:.3f})"
    )
    said = f"{what}; {odds if enough else _powerless(attack, band, odds)}"
    if attack.left_out:
        said = f"{said}; {attack.left_out}, so that this can't pass"
    return Gate(
        name=name,
        kind="forgetting",
        role=role,
        measure=measure,
        value=estimate.value,
        interval=interval,
        band=band,
        verdict=attack.judged(verdict_of(interval, band)) if enough else "inconclusive",
        power=0.0 if attack.unmatched else power,
        examples=count,
        reason=said,
    )


def _powerless(attack: Population, band: tuple[float, float], odds: str) -> str:
    """Say in plain words why nothing can be concluded."""
    count = len(attack.match.forget)
    is_widest = band[1] - band[0] >= 2 * WIDEST_BAND
    if is_widest or attack.power(WIDEST_BAND) < ENOUGH_POWER:
        return f"a population attack has no power with {count} records: even {odds}"
    return f"the parent itself is too close to never-seen data to tell anything: even {odds}"


def _accuracy_gap(attack: Population, model: Literal["before", "after"]) -> tuple[Estimate, float]:
    """Accuracy on forget records minus that on never-seen ones, and the latter."""
    scores, match = attack.evidence.scores[model], attack.match
    holdout = attack.evidence.need_holdout()
    members = correct(scores["forget"], attack.evidence.forget.labels)[match.forget].double()
    others = correct(scores["holdout"], holdout.labels)[match.others].double()
    # Weights that sum to 1 up to rounding: where all are right, a sum of them may exceed it.
    theirs = float((others * match.weights).sum().clamp(0, 1))
    gap = proportion_difference(
        float(members.mean()), len(members), theirs, match.effective, level=LEVEL
    )
    return gap, theirs
