"""Gates of a rung: utility and sanity here, forgetting beside it, all on judging data alone.

Utility is one-sided: a model that got better passes. Of an exact rung only sanity and a large
utility drop can block; the rest is reported.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from scipy import special
from torch import Tensor

from .audit_gates import audit_gates
from .errors import MissingEvidence
from .findings import Finding, Gate
from .forgetting import for_purpose, forgetting
from .intervals import Estimate, paired_drop
from .measures import correct
from .problem import Evidence
from .scores import change
from .situation import Policy
from .verdicts import LEVEL, Role, unmeasured, verdict_of

UTILITY_BAND = 0.01
EXACT_UTILITY_BAND = 0.05
WORST_CLASS_BAND = 0.03
SMALLEST_CHANGE = 1e-6
LARGEST_DRIFT = 10.0


def judge_all(
    evidence: Evidence,
    *,
    exact: bool,
    policy: Policy = "standard",
    findings: Sequence[Finding] | None = None,
) -> list[Gate]:
    """Return every gate of a rung: utility, forgetting, what audits found, sanity.

    Args:
        evidence: of the rung.
        exact: whether the rung is exact by construction.
        policy: whose gates are asked for.
        findings: of the rung's audits; without them no gate rests on an audit.
    """
    audited = (
        [] if findings is None else audit_gates(findings, policy, evidence.selector, exact=exact)
    )
    return [
        utility(evidence, exact=exact),
        worst_class(evidence, exact=exact, policy=policy),
        *forgetting(evidence, exact=exact),
        *for_purpose(audited, evidence.purpose),
        *sanity(evidence),
    ]


def utility(evidence: Evidence, *, exact: bool) -> Gate:
    """Drop of accuracy on judging records, of the classes that stay where a class is forgotten.

    An exact rung without a holdout is held against retained records instead.
    """
    allowed = EXACT_UTILITY_BAND if exact else UTILITY_BAND
    band = (-1.0, allowed)
    try:
        role, labels, kept = _utility_records(evidence, exact=exact)
    except MissingEvidence as error:
        return unmeasured("utility", "utility", "accuracy_drop", band, "must_pass", str(error))
    before, after = _right(evidence, role, labels)
    drop = paired_drop(before[kept], after[kept], level=LEVEL)
    count = int(kept.sum())
    of_which = " of the classes that stay" if evidence.selector == "class" else ""
    return Gate(
        name="utility",
        kind="utility",
        role="must_pass",
        measure="accuracy_drop",
        value=drop.value,
        interval=(drop.low, drop.high),
        band=band,
        verdict=verdict_of((drop.low, drop.high), band),
        power=_unchanged_power(count, LEVEL, allowed),
        examples=count,
        reason=f"accuracy on {count} {role} records{of_which} fell by {_points(drop)}; at most "
        f"{100 * allowed:g} points are allowed",
    )


def worst_class(evidence: Evidence, *, exact: bool, policy: Policy = "standard") -> Gate:
    """Largest drop of any class that stays; the interval covers all classes at once.

    ``strict`` wants it passed. That claims a bound for every class, so each class has to show it
    at its own level: the largest of the upper ends is a 95 % bound of the largest drop without any
    correction, because the class that truly fell most lies below its own. The lower end needs the
    correction. The power then is that of a model which changes as many answers without any drop.
    Where a class of the network has no judging record, nothing can pass.
    """
    band = (-1.0, WORST_CLASS_BAND)
    must_pass = policy == "strict" and not exact
    role: Role = "reported" if exact else "must_pass" if must_pass else "must_not_fail"
    try:
        where, labels, kept = _utility_records(evidence, exact=False)
    except MissingEvidence as error:
        return unmeasured("worst_class", "utility", "accuracy_drop", band, role, str(error))
    before, after = _right(evidence, where, labels)
    classes = labels[kept].unique().tolist()
    level = 1 - (1 - LEVEL) / len(classes)
    drops = {c: paired_drop(before[labels == c], after[labels == c], level=level) for c in classes}
    worst = max(drops, key=lambda label: drops[label].value)
    highest = max(d.high for d in drops.values())
    fewest = min(int((labels == c).sum()) for c in classes)
    power = _unchanged_power(fewest, level, WORST_CLASS_BAND)
    said = f"interval for {len(classes)} classes at once"
    if must_pass:
        own = [paired_drop(before[labels == c], after[labels == c], level=LEVEL) for c in classes]
        highest = max(drop.high for drop in own)
        power = math.prod(_steady_power(drop, WORST_CLASS_BAND) for drop in own)
        said += (
            f"; a model that changed as many answers, without any drop, would pass with "
            f"probability {power:.2f} with {fewest} records of the rarest class"
        )
    interval = (max(d.low for d in drops.values()), highest)
    verdict = verdict_of(interval, band)
    gone = evidence.forget_classes if evidence.selector == "class" else frozenset()
    unseen = sorted(set(range(evidence.num_classes)) - gone - set(classes))
    if must_pass and unseen:
        verdict, power = "inconclusive" if verdict == "passed" else verdict, 0.0
        said += f"; {len(unseen)} classes without a judging record, such as {unseen[0]}, are open"
    return Gate(
        name="worst_class",
        kind="utility",
        role=role,
        measure="accuracy_drop",
        value=drops[worst].value,
        interval=interval,
        band=band,
        verdict=verdict,
        power=power,
        examples=int(kept.sum()),
        reason=f"class {worst} fell most, by {100 * drops[worst].value:.2f} points; at most "
        f"{100 * WORST_CLASS_BAND:g} are allowed ({said})",
    )


def sanity(evidence: Evidence) -> list[Gate]:
    """Parameters changed, everything is finite, drift is bounded."""
    found = change(evidence.before, evidence.after)
    drift = found.relative if math.isfinite(found.relative) else None
    return [
        _sane(
            "changed",
            "relative_change",
            drift,
            # JSON knows no infinity; "drift" has the upper end
            (SMALLEST_CHANGE, 1e9),
            found.num_parameters,
            f"the parameters must change by more than {SMALLEST_CHANGE:g} of their norm",
        ),
        _sane(
            "finite",
            "non_finite",
            float(found.non_finite),
            (0.0, 0.0),
            found.num_parameters,
            "no weight may be NaN or infinite",
        ),
        _sane(
            "drift",
            "relative_change",
            drift,
            (0.0, LARGEST_DRIFT),
            found.num_parameters,
            f"the parameters must stay within {LARGEST_DRIFT:g} times their norm",
        ),
    ]


def _sane(
    name: str,
    measure: str,
    value: float | None,
    band: tuple[float, float],
    examples: int,
    reason: str,
) -> Gate:
    inside = value is not None and band[0] <= value <= band[1]
    if name == "changed" and value is not None:
        inside = value > band[0]
    return Gate(
        name=name,
        kind="sanity",
        role="must_not_fail",
        measure=measure,
        value=value,
        interval=None if value is None else (value, value),
        band=band,
        verdict="passed" if inside else "failed",
        power=None,
        examples=examples,
        reason=reason if value is not None else f"{reason}; it is not finite",
    )


def _utility_records(evidence: Evidence, *, exact: bool) -> tuple[str, Tensor, Tensor]:
    """Role, labels and mask of the records that utility is measured on."""
    if exact and evidence.holdout is None and evidence.retain is not None:
        role, labels = "retain", evidence.retain.labels
    else:
        role, labels = "holdout", evidence.need_holdout().labels
    kept = torch.ones(len(labels), dtype=torch.bool)
    if evidence.selector == "class":
        kept = ~torch.isin(labels, torch.tensor(sorted(evidence.forget_classes)))
    if not bool(kept.any()):
        raise MissingEvidence(f"no {role} record is of a class that stays")
    return role, labels, kept


def _right(evidence: Evidence, role: str, labels: Tensor) -> tuple[Tensor, Tensor]:
    before = correct(evidence.scores["before"][role], labels)
    return before, correct(evidence.scores["after"][role], labels)


def _unchanged_power(count: int, level: float, allowed: float) -> float:
    """Whether a model that changes no prediction would pass with this many records."""
    z = float(special.ndtri(0.5 + level / 2))
    return 1.0 if z / (count + 2) <= allowed else 0.0


def _steady_power(drop: Estimate, allowed: float) -> float:
    """Probability that the upper end of this wide an interval is allowed, were there no drop."""
    z = float(special.ndtri(0.5 + LEVEL / 2))
    half = (drop.high - drop.low) / 2
    return float(special.ndtr(z * (allowed - half) / half))


def _points(drop: Estimate) -> str:
    return f"{100 * drop.value:.2f} points [{100 * drop.low:.2f}, {100 * drop.high:.2f}]"
