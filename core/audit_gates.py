"""Gates made of what audits found: nothing is measured here, findings are held against a band.

``prototype_recovery`` belongs to every request for a class. ``per_record_attack``,
``relearn_time`` and ``linear_probe`` are what the ``strict`` policy asks for beside the usual
gates; under any other policy their audits do not run, and an exact rung does not pay for what
could not block it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from scipy import special

from .attack import WIDEST_BAND, allowed_band
from .audits import AuditOptions
from .audits.linear_probe import LinearProbeConfig
from .audits.prototype import PrototypeConfig
from .audits.relearn_time import RelearnTimeConfig
from .findings import Finding, Gate
from .intervals import equivalence_power, proportion_difference
from .perrecord import allowed_share
from .situation import Policy, Selector
from .verdicts import ENOUGH_POWER, LEVEL, Role, unmeasured, verdict_of

PER_RECORD = ("rmia", "lira")
"""Per-record attacks, the preferred one first."""

PROBED_RECORDS = 5000
"""Records per side of the probe: a weak trace in the features needs many to be ruled out."""

PROTOTYPE_RECORDS = 5000
"""Records whose features make prototypes on one rung, about."""

RELEARN = RelearnTimeConfig(repeats=10)

_NO_END = 1e9
"""Upper end of a band without one; JSON knows no infinity."""


def audits_for(
    policy: Policy, selector: Selector, *, exact: bool, num_classes: int
) -> list[AuditOptions]:
    """Audits that a rung runs for its gates, beyond the routine ones.

    Prototypes cost the features of some thousand records, so every rung of a request for a class
    looks at them; with many classes fewer draws are averaged.
    """
    chosen: list[AuditOptions] = []
    if selector == "class":
        plain = PrototypeConfig()
        affordable = PROTOTYPE_RECORDS // (plain.shots * num_classes)
        repeats = max(1, min(plain.repeats, affordable))
        chosen.append(PrototypeConfig(repeats=repeats))
    if policy == "strict" and not exact:
        chosen += [RELEARN, LinearProbeConfig(most_records=PROBED_RECORDS)]
    return chosen


def audit_gates(
    findings: Sequence[Finding], policy: Policy, selector: Selector, *, exact: bool
) -> list[Gate]:
    """Return the gates that rest on these findings.

    Args:
        findings: of the routine audits and of ``audits_for``.
        policy: whose gates are asked for.
        selector: of the request.
        exact: whether the rung is exact; its forgetting gates are reported, never gating.
    """
    gates = [prototype_recovery(findings)] if selector == "class" else []
    if exact:
        return [gate.model_copy(update={"role": "reported"}) for gate in gates]
    if policy == "strict":
        gates += [
            per_record_attack(findings),
            relearn_time(findings),
            linear_probe(findings, selector),
        ]
    return gates


def prototype_recovery(findings: Iterable[Finding]) -> Gate:
    """Accuracy on a forgotten class with a head rebuilt from prototypes, above a never-seen class.

    What a never-seen class gives is what an oracle gives. Without one a fresh network stands in:
    a model that recovers no more than that knows nothing of the class. One that recovers more may
    still be innocent, because features learned from other classes fit new ones too, so the gate
    is then inconclusive and never fails.
    """
    return _above_reference(
        findings, "prototype", "recovered_accuracy", "prototype_recovery", "must_not_fail"
    )


def per_record_attack(findings: Iterable[Finding]) -> Gate:
    """Forget records beyond what never-seen ones reach, record by record, on either side.

    The first attack that could be run decides: RMIA, else LiRA. Both tails must be clear: records
    that stand out by how badly they are known are as visible as remembered ones. Without
    reference models it is inconclusive, and no number of records changes that.
    """
    measure = "exceeding_share"
    reasons = []
    for audit in PER_RECORD:
        own = _of(findings, audit)
        tails = [own[m] for m in (measure, "below_share") if m in own]
        if tails and "exceeding_share_before" in own:
            return _worse(
                [_tail_gate(tail, own["exceeding_share_before"], own["power"]) for tail in tails]
            )
        reasons += [found.reason for found in own.values() if found.reason]
    why = reasons[0] if reasons else "no per-record attack was run"
    return unmeasured(
        "per_record_attack",
        "forgetting",
        measure,
        (0.0, 1.0),
        "must_pass",
        f"a per-record attack needs the reference models of this model: {why}",
    )


def relearn_time(findings: Iterable[Finding]) -> Gate:
    """Steps to learn the forget records again over steps for never-seen ones; too few is memory."""
    band = (RELEARN.smallest_ratio, _NO_END)
    found = _of(findings, "relearn_time")
    ratio = found.get("relearn_ratio")
    if ratio is None or ratio.value is None or ratio.interval is None:
        return _open("relearn_time", "relearn_ratio", band, "must_pass", found)
    interval = (ratio.interval[0], min(ratio.interval[1], _NO_END))
    power = 0.0  # where never-seen records were not learned to the end, nothing can pass
    if interval[0] > 0:
        half = (math.log(ratio.interval[1]) - math.log(ratio.interval[0])) / 2
        error = half / float(special.stdtrit(RELEARN.repeats - 1, 0.5 + LEVEL / 2))
        room = -math.log(RELEARN.smallest_ratio) - half
        power = float(special.ndtr(room / error)) if error > 0 else 1.0
    return _gate(
        "relearn_time",
        "relearn_ratio",
        "must_pass",
        min(ratio.value, _NO_END),
        interval,
        band,
        power,
        ratio.examples,
        f"relearning takes {ratio.value:.2f} times as long as learning never-seen records, at "
        f"least {RELEARN.smallest_ratio:g} is asked: {ratio.reason}",
    )


def linear_probe(findings: Iterable[Finding], selector: Selector) -> Gate:
    """AUC of a probe on the features before the last layer.

    For records: around 1/2, within half the parent's own distance where its features tell forget
    records from never-seen ones, else within the widest band. For a class: above what an oracle
    gives; see ``prototype_recovery`` for what stands in for one.
    """
    if selector == "class":
        return _above_reference(findings, "linear_probe", "probe_auc", "linear_probe", "must_pass")
    found = _of(findings, "linear_probe")
    after, before = found.get("probe_auc"), found.get("probe_auc_before")
    if after is None or before is None or after.value is None or before.value is None:
        return _open("linear_probe", "probe_auc", (0.45, 0.55), "must_pass", found)
    assert after.interval is not None
    assert before.interval is not None
    told = before.interval[0] > 0.5
    kappa = allowed_band(before.value - 0.5) if told else WIDEST_BAND
    sd = _half(after) / float(special.ndtri(0.5 + LEVEL / 2))
    how = "which tell them apart" if told else "which do not tell them apart"
    return _gate(
        "linear_probe",
        "probe_auc",
        "must_pass",
        after.value,
        after.interval,
        (0.5 - kappa, 0.5 + kappa),
        equivalence_power(kappa, sd, level=LEVEL),
        after.examples,
        f"a probe of the features tells forget records from never-seen ones with AUC "
        f"{after.value:.3f} (features of the parent, {how}: {before.value:.3f})",
    )


def _above_reference(
    findings: Iterable[Finding], audit: str, measure: str, name: str, role: Role
) -> Gate:
    """Gate of a measure minus the same measure of an oracle or a fresh network.

    The interval is that of a difference between two samples; the records are the same, so it is on
    the wide side.
    """
    found = _of(findings, audit)
    after, before = found.get(measure), found.get(f"{measure}_before")
    difference = f"{measure}_difference"
    if after is None or before is None or after.value is None or before.value is None:
        return _open(name, difference, (-1.0, WIDEST_BAND), role, found)
    assert after.reference is not None
    reference, count = after.reference, after.examples
    kappa = min(WIDEST_BAND, max(before.value - reference, 0.0) / 2)
    band = (-1.0, kappa)
    if measure == "recovered_accuracy":
        estimate = proportion_difference(after.value, count, reference, count, level=LEVEL)
        interval = (estimate.low, estimate.high)
    else:
        half = _half(after) * math.sqrt(2)
        centre = after.value - reference
        interval = (max(centre - half, -1.0), min(centre + half, 1.0))
    z = float(special.ndtri(0.5 + LEVEL / 2))
    error = (interval[1] - interval[0]) / 2 / z
    power = float(special.ndtr(kappa / error - z)) if error > 0 else 1.0
    gate = _gate(
        name,
        difference,
        role,
        after.value - reference,
        interval,
        band,
        power,
        count,
        f"{measure} of what was forgotten is {after.value:.3f}, of {_called(after)} "
        f"{reference:.3f} (parent {before.value:.3f}); at most {kappa:.3f} above is allowed",
    )
    if after.reference_name == "oracle" or gate.verdict != "failed":
        return gate
    reason = f"{gate.reason}; without an oracle what a never-seen class gives is not known"
    return gate.model_copy(update={"verdict": "inconclusive", "reason": reason})


def _tail_gate(tail: Finding, parent: Finding, power: Finding) -> Gate:
    """Turn one tail of a per-record attack, judged by the audit itself, into a gate."""
    assert tail.value is not None
    assert tail.reference is not None
    assert tail.interval is not None
    assert tail.verdict is not None
    assert parent.value is not None
    side = "above" if tail.measure == "exceeding_share" else "below"
    return Gate(
        name="per_record_attack",
        kind="forgetting",
        role="must_pass",
        measure=tail.measure,
        value=tail.value,
        interval=tail.interval,
        band=(0.0, allowed_share(tail.reference, parent.value)),
        verdict=tail.verdict,
        power=power.value,
        examples=tail.examples,
        reason=f"{tail.audit}, {side} never-seen records: {tail.reason}",
    )


def _worse(gates: Sequence[Gate]) -> Gate:
    order = ("failed", "inconclusive", "passed")
    return min(gates, key=lambda gate: order.index(gate.verdict))


def _gate(
    name: str,
    measure: str,
    role: Role,
    value: float,
    interval: tuple[float, float],
    band: tuple[float, float],
    power: float,
    examples: int,
    what: str,
) -> Gate:
    """Judge; where a perfect model would hardly pass nothing is concluded, whatever was found."""
    verdict = verdict_of(interval, band) if power >= ENOUGH_POWER else "inconclusive"
    return Gate(
        name=name,
        kind="forgetting",
        role=role,
        measure=measure,
        value=value,
        interval=interval,
        band=band,
        verdict=verdict,
        power=power,
        examples=examples,
        reason=f"{what}; a perfect model would pass with probability {power:.2f}",
    )


def _open(
    name: str, measure: str, band: tuple[float, float], role: Role, found: dict[str, Finding]
) -> Gate:
    """Make the gate of an audit that told nothing, with its reason."""
    reasons = [finding.reason for finding in found.values() if finding.reason]
    why = reasons[0] if reasons else "its audit was not run"
    return unmeasured(name, "forgetting", measure, band, role, why)


def _of(findings: Iterable[Finding], audit: str) -> dict[str, Finding]:
    return {finding.measure: finding for finding in findings if finding.audit == audit}


def _half(finding: Finding) -> float:
    assert finding.interval is not None
    return (finding.interval[1] - finding.interval[0]) / 2


def _called(finding: Finding) -> str:
    return "an oracle" if finding.reference_name == "oracle" else "a fresh network"
