"""Policies: which rungs are tried in which order, and when one may be published. Free of torch.

The fixed ladders stand in until methods are recommended by situation.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from .findings import Gate

Policy = Literal["fast", "standard", "strict", "exact"]
Selector = Literal["class", "records"]

SMALL_REQUEST = 200
"""Below this many records a population attack has no power, so the exact rung comes first."""

STRICT_NEEDS = ("per_record_attack", "relearn_time", "linear_probe")
"""Audits without which ``strict`` cannot be offered."""


class PolicyUnavailable(Exception):
    """The policy asks for audits that are not registered."""


class Situation(BaseModel):
    """What decides the ladder of a job."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: Policy
    selector: Selector
    num_forget: int
    has_recipe: bool
    has_holdout: bool
    unlearner: dict[str, Any] | None = None
    """One unlearner config given by the caller; it is then the only rung."""


def ladder(situation: Situation) -> list[dict[str, Any]]:
    """Return the rungs to try, in order, as unlearner configs; may be empty.

    Approximate rungs are left out without a holdout, because nothing could judge them; the exact
    rung is left out without a recipe.
    """
    if situation.unlearner is not None:
        return [situation.unlearner]
    approximate = [{"name": "ssd" if situation.selector == "class" else "fine_tune"}]
    exact = [{"name": "retrain"}] if situation.has_recipe else []
    if not situation.has_holdout:
        approximate = []
    if situation.policy == "exact":
        return exact
    small = situation.num_forget < SMALL_REQUEST
    rungs = exact + approximate if small else approximate + exact
    return rungs[:1] if situation.policy == "fast" else rungs


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
        return True, "exact by construction; sanity and utility hold"
    open_gates = [g.name for g in gates if g.verdict != "passed" and _needed(policy, g)]
    if open_gates:
        return False, f"inconclusive: {', '.join(open_gates)}"
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
