"""What audits say: findings, gates and verdicts. Free of torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Verdict = Literal["passed", "failed", "inconclusive"]
Outcome = Literal["erased_exact", "erased_approximate", "no_influence", "not_erased"]


class Finding(BaseModel):
    """One measured value, with what it was compared with and how many examples it rests on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    audit: str
    measure: str
    scope: str
    """What was measured: ``forget``, ``retain``, ``holdout``, ``holdout/class=3`` ..."""
    value: float | None
    """None only when the verdict is ``inconclusive``."""
    unit: str
    reference: float | None = None
    """The same measure on never-seen data, the parent or the oracle; ``reference_name`` says."""
    reference_name: str | None = None
    interval: tuple[float, float] | None = None
    """90 % interval unless ``interval_level`` says otherwise."""
    interval_level: float = 0.90
    examples: int
    verdict: Verdict | None = None
    """None for a plain measurement that judges nothing."""
    reason: str | None = None


class Gate(BaseModel):
    """A measured difference held against an allowed band; three-valued, with its power."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: Literal["utility", "forgetting", "sanity"]
    role: Literal["must_pass", "must_not_fail", "reported"]
    """What is asked of it on an approximate rung. ``strict`` wants every gate passed that is not
    ``reported``; its own gates are ``must_pass`` and appear under it alone."""
    measure: str
    value: float | None
    interval: tuple[float, float] | None
    band: tuple[float, float]
    """The gate passes when the interval lies inside, fails when it is disjoint."""
    verdict: Verdict
    power: float | None
    """Probability that a perfect model would pass with this many examples; None if not defined."""
    examples: int
    reason: str


class Processes(BaseModel):
    """How many processes shared the trainings of one piece of work, and what follows from it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    asked: int
    """As many as the worker is set to."""
    used: int
    backend: Literal["gloo", "nccl"] | None = None
    """What carried the gradients between them."""
    reason: str | None = None
    """Why fewer than asked, or what else there is to know."""
    determinism: str | None = None
    """What has to be the same for the same bits, where several shared it."""


class Rung(BaseModel):
    """One rung that was tried on a copy of the parent, with everything that was measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    index: int
    unlearner: dict[str, object]
    exact: bool
    status: Literal["published", "refused", "errored", "skipped"]
    reason: str
    gates: list[Gate] = []
    findings: list[Finding] = []
    """On the union of the job's forget sets; where the rung errored, that there is no model."""
    per_request: dict[str, RequestEvidence] = {}
    """Request id -> gates and findings on that request's own records, with their own power."""
    earlier: dict[str, list[Gate]] = {}
    """Id of an earlier request -> gates on what it had forgotten; of a published rung, and never
    asked of it."""
    tried: list[dict[str, object]] = []
    """Every hyper-parameter a search tried, with what it measured on the tuning half."""
    seconds: float = 0.0
    """Wall time of the unlearner, importance included, audits excluded."""
    audit_seconds: float = 0.0
    processes: Processes | None = None
    """None where the worker is set to one process."""
    histogram: dict[str, list[float]] | None = None
    """Margin score histograms: ``edges``, ``forget``, ``holdout``, ``forget_before``."""


class RequestEvidence(BaseModel):
    """Gates and findings on one request's own records."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gates: list[Gate] = []
    findings: list[Finding] = []


Rung.model_rebuild()
