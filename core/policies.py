"""Policies: which rungs are tried in which order, and when one may be published. Free of torch.

Of an approximate rung ``fast`` wants utility passed and no gate failed; ``standard`` wants every
gate passed that must pass (utility, ``membership_auc``, for a class ``class_accuracy``) and none
failed (``worst_class``, ``forget_accuracy``, for a class ``prototype_recovery``, sanity);
``strict`` wants all of these passed and with them ``per_record_attack``, ``relearn_time`` and
``linear_probe``. It needs the model's reference models, a recipe and a holdout that is large enough
for every class, and for a class an oracle, unless the features tell no more than fresh ones do;
where one is missing its gate is inconclusive and says so. No request trains an oracle, so that one
for a class ends in an exact rung, as a rule. ``exact`` publishes exact rungs only.

Poison is to lose its label, not to look never seen: there ``poison_accuracy`` must pass, and every
other forgetting gate is reported.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from .findings import Gate
from .methods import registered
from .recommend import recommend
from .situation import SMALL_REQUEST, Policy, Purpose, Selector, Situation

__all__ = [
    "SMALL_REQUEST",
    "STRICT_GATES",
    "STRICT_NEEDS",
    "Policy",
    "Purpose",
    "Selector",
    "Situation",
    "ladder",
    "may_publish",
    "missing_audits",
]

STRICT_NEEDS = (("rmia", "lira"), ("relearn_time",), ("linear_probe",))
"""Audits without which ``strict`` cannot be offered; of each group one is enough."""

STRICT_GATES = ("per_record_attack", "relearn_time", "linear_probe")
"""Gates that only ``strict`` asks for; each rests on one of its audits."""


def ladder(situation: Situation, names: Iterable[str] | None = None) -> list[dict[str, Any]]:
    """Return the rungs to try, in order, as unlearner configs; may be empty.

    Expected times are rough, so that what is expected to exceed the time budget is not given up:
    exact rungs come last then, and where nothing is expected to fit, the clock decides.

    Args:
        situation: of the job.
        names: of the unlearners to choose from; by default all that are registered.
    """
    chosen = recommend(situation, names).candidates
    if situation.time_budget_seconds is not None:
        whole = situation.model_copy(update={"time_budget_seconds": None})
        known = [candidate.unlearner for candidate in chosen]
        late = [c for c in recommend(whole, names).candidates if c.unlearner not in known]
        if not chosen:
            chosen = late
        elif situation.policy != "fast":
            chosen = chosen + [candidate for candidate in late if candidate.exact]
    return [candidate.unlearner for candidate in chosen]


def missing_audits(policy: Policy, names: Collection[str] | None = None) -> list[str]:
    """Return the audits that a policy needs and that are not registered.

    Args:
        policy: which one.
        names: of the audits there are; by default all that are registered.
    """
    if policy != "strict":
        return []
    there = registered("audits") if names is None else names
    return [
        " or ".join(group) for group in STRICT_NEEDS if not any(name in there for name in group)
    ]


def may_publish(policy: Policy, exact: bool, gates: list[Gate]) -> tuple[bool, str]:
    """Decide whether a rung with these gates may be published, and say why.

    An exact rung is blocked by its sanity and utility gates alone: its forgetting findings are
    reported, never gating.
    """
    if policy == "exact" and not exact:
        return False, "the exact policy publishes exact rungs only"
    blocking = [g for g in gates if g.kind != "forgetting"] if exact else gates
    failed = [g.name for g in blocking if g.verdict == "failed" and g.role != "reported"]
    if failed:
        return False, f"failed: {', '.join(failed)}"
    if exact:
        return True, "exact by construction; sanity and utility did not fail"
    open_gates = [g.name for g in gates if g.verdict != "passed" and _needed(policy, g)]
    if open_gates:
        return False, f"inconclusive: {', '.join(open_gates)}"
    there = {gate.name for gate in gates}
    unseen = [name for name in STRICT_GATES if name not in there]
    if policy == "strict" and unseen:
        return False, f"inconclusive: strict needs the gates {', '.join(unseen)}"
    if not any(g.kind == "forgetting" for g in gates):
        return False, "inconclusive: no forgetting gate could be measured"
    if policy == "fast":
        return True, "utility passed and no forgetting gate failed"
    return True, "utility and the required forgetting gates passed"


def _needed(policy: Policy, gate: Gate) -> bool:
    """Whether the policy wants this gate passed, not merely not failed."""
    if gate.role == "reported":
        return False
    if policy == "strict":
        return True
    if policy == "fast" and gate.kind == "forgetting":
        return False
    return gate.role == "must_pass"
