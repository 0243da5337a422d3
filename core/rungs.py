"""One rung: an unlearner on a copy of the parent, then audits, gates and the decision."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from . import batchnorm, gates, masks
from .attack import population
from .audit_gates import audits_for, per_record_attack
from .audits import audits, run_all, run_chosen
from .bank import Bank, References
from .checkpoints import Keeper
from .data import Records
from .determinism import seed_everything
from .earlier import Again, look_again
from .errors import CoreError, Diverged, Infeasible, MissingEvidence, NothingChanged, OutOfTime
from .findings import Finding, RequestEvidence, Rung
from .forgetting import for_purpose, forgetting
from .group import is_memory
from .importance import Importance
from .policies import Policy, Purpose, Selector, may_publish
from .problem import BatchNormPolicy, Evidence, Problem
from .recipe import Recipe
from .registry import Config
from .report import Report
from .roles import positions, sample
from .scores import change, gather
from .team import Team
from .unlearners import FROZEN_BATCHNORM, Need, UnlearnerOptions, unlearners
from .verdicts import ENOUGH_POWER

RETAIN_SAMPLE = 5000
"""Retained records that audits look at."""

_HISTOGRAM_BINS = 40

Scores = dict[str, Tensor]
"""Role -> logits."""


@dataclass(kw_only=True)
class Case:
    """What all rungs of a job share."""

    parent: nn.Module
    fresh: Callable[[int], nn.Module]
    forget: Records
    retain: Records | None
    tuning: Records | None
    judging: Records | None
    recipe: Recipe | None
    importance: Importance | None
    requests: Mapping[str, list[int]]
    selector: Selector
    forget_classes: frozenset[int]
    num_classes: int
    policy: Policy
    seed: int
    batch_size: int
    bn_policy: BatchNormPolicy
    device: torch.device
    deadline: float
    report: Report
    network: str = ""
    """Name of the architecture; unlearners that are for certain ones are skipped with others."""
    purpose: Purpose = "erasure"
    earlier: Mapping[str, Records] = field(default_factory=dict)
    """Request id -> records that the lineage has forgotten: looked at, never learned from."""
    oracles: tuple[nn.Module, ...] = ()
    """Models trained on the retain set alone, where someone trained them."""
    bank: Bank | None = None
    """Margins of reference models, where they were trained."""
    keeper: Keeper | None = None
    """Keeps the state of long trainings."""
    processes: int = 1
    """How many may share a training."""
    description: Config | None = None
    """What the parent was built from."""
    known: dict[str, Scores] = field(default_factory=dict)
    """Logits of the parent and the oracles, computed for the first rung and shared by all."""

    @cached_property
    def zeros(self) -> masks.Masks:
        """Masks of a parent that was pruned; empty for a dense one."""
        return masks.of_pruned(self.parent)

    def check_time(self) -> None:
        """Raise OutOfTime once the wall-clock limit of the job is spent."""
        if time.monotonic() > self.deadline:
            raise OutOfTime("the time limit of the job is spent")

    def audited(self) -> dict[str, Records]:
        """Records that audits look at, by role."""
        roles = {
            "forget": self.forget,
            "retain": sample(self.retain, RETAIN_SAMPLE, self.seed),
            "holdout": self.judging,
        }
        return {role: records for role, records in roles.items() if records is not None}


def attempt(
    case: Case, config: UnlearnerOptions, index: int, of: int, *, exact_follows: bool = False
) -> tuple[Rung, nn.Module | None]:
    """Try one rung; return what was measured, and the model if it may be published.

    An unlearner that raises a CoreError makes the rung ``errored``, with the reason and a finding,
    and so does one that needs too much memory where another rung follows. Where an exact rung
    follows that can be tried, one that no model could pass is skipped.
    """
    told = {"index": index, "of": of, "method": config.name}
    rung = Rung(
        index=index,
        unlearner=config.model_dump(mode="json"),
        exact=config.is_exact,
        status="skipped",
        reason="",
    )
    asked = time.monotonic()
    reason = reason_to_skip(case, config)
    if reason is None and exact_follows:
        reason = _reason_to_despair(case, config, told)
    if reason is not None:
        return rung.model_copy(update={"reason": reason}), None
    tried: list[dict[str, Any]] = []
    team = Team(case.processes, case.description)
    start = time.monotonic()
    try:
        model = _run(case, config, told, tried, team)
        middle = time.monotonic()
        evidence = gather_evidence(case, model, told)
        rung = _judge(case, evidence, rung)
        rung = rung.model_copy(update={"reason": rung.reason + _of_zeros(case, model)})
    except Exception as error:
        if isinstance(error, CoreError):
            reason = f"{error.code}: {error}"
        elif is_memory(error) and index + 1 < of:
            reason = "out_of_memory: the unlearner or its audits need more memory than there is"
        else:
            raise
        failed: dict[str, Any] = {"status": "errored", "reason": reason}
        failed["findings"] = [_no_candidate(case, error, reason)]
        failed |= {"tried": tried, "processes": team.summary()}
        return rung.model_copy(update={**failed, "seconds": time.monotonic() - start}), None
    audited = start - asked + time.monotonic() - middle
    timing = {"seconds": middle - start, "audit_seconds": audited}
    rung = rung.model_copy(update={"tried": tried, "processes": team.summary(), **timing})
    return rung, model if rung.status == "published" else None


def _no_candidate(case: Case, error: Exception, reason: str) -> Finding:
    """Say that there was nothing to audit: failed where it is the unlearner's fault."""
    at_fault = isinstance(error, (Diverged, Infeasible, NothingChanged))
    return Finding(
        audit="sanity",
        measure="usable_model",
        scope="parameters",
        value=0.0 if at_fault else None,
        unit="1",
        reference=1.0,
        reference_name="a usable model",
        examples=len(case.forget),
        verdict="failed" if at_fault else "inconclusive",
        reason=reason,
    )


def gather_evidence(case: Case, model: nn.Module, told: dict[str, Any] | None) -> Evidence:
    """Compute the logits of parent, oracles and candidate, each once, for all audits and gates.

    The candidate may be the parent itself.
    """
    records = case.audited()
    oracles = {"oracle" if n == 1 else f"oracle_{n}": m for n, m in enumerate(case.oracles, 1)}
    fixed = {"before": case.parent, **oracles}
    todo = {name: m for name, m in fixed.items() if name not in case.known}
    if model is not case.parent:
        todo["after"] = model
    share = 0.9 / max(1, len(todo)) / sum(len(r) for r in records.values())
    spent = 0.0
    scores = dict(case.known)
    for name, which in todo.items():
        scores[name] = {}
        for role, chosen in records.items():
            case.report("auditing", spent, None, told, {})
            scores[name][role] = gather(
                which, chosen, batch_size=case.batch_size, device=case.device
            )
            spent += share * len(chosen)
    case.known.update({name: scores[name] for name in fixed})
    scores.setdefault("after", scores["before"])
    return Evidence(
        before=case.parent,
        after=model,
        forget=case.forget,
        retain=records.get("retain"),
        holdout=case.judging,
        selector=case.selector,
        num_classes=case.num_classes,
        forget_classes=case.forget_classes,
        purpose=case.purpose,
        scores=scores,
        oracles=case.oracles,
        references=_references(case),
        tuning=case.tuning,
        recipe=case.recipe,
        fresh=case.fresh,
        seed=case.seed,
        batch_size=case.batch_size,
        device=case.device,
        check_time=case.check_time,
    )


def _references(case: Case) -> References | None:
    """What the bank says about this case's records; None if it does not know them all."""
    if case.bank is None or case.judging is None:
        return None
    try:
        return case.bank.references(case.forget.rows, case.judging.rows)
    except MissingEvidence:
        return None  # the per-record audits say what is missing


def reason_to_skip(case: Case, config: UnlearnerOptions) -> str | None:
    """Why a rung can't be tried in this case; None if it can."""
    missing: dict[Need, str | None] = {
        "retain": None if case.retain is not None else "no training record stays",
        "recipe": None if case.recipe is not None else "no recipe was registered with the model",
        "holdout": None if case.tuning is not None else "no holdout was registered with the model",
        "importance": _no_importance(case, config),
        "class": None if case.selector == "class" else "the request names records",
        "images": None if case.forget.images.ndim == 4 else "the records are features",
    }
    for need in config.all_needs:
        if missing[need] is not None:
            return f"{config.name} needs the {need}: {missing[need]}"
    is_frozen = case.bn_policy == "frozen" and batchnorm.has_batchnorm(case.parent)
    if is_frozen and not config.fits_frozen_batchnorm:
        return FROZEN_BATCHNORM
    if config.networks and case.network not in config.networks:
        return f"{config.name} is for the network {' or '.join(config.networks)}"
    if not config.is_exact and case.judging is None:
        return "without a holdout nothing could judge an approximate rung"
    if not config.is_exact and case.policy == "exact":
        return "the exact policy tries exact rungs only"
    return None


def _no_importance(case: Case, config: UnlearnerOptions) -> str | None:
    """Why there is no importance of the full set for these options; None if there is."""
    found = case.importance
    if case.retain is not None or (found and found.estimator == config.importance_taken):
        return None
    stored = "none is stored" if found is None else f"{found.estimator} is stored"
    return f"{config.importance_taken} is taken, {stored}, and no training record stays"


def _reason_to_despair(case: Case, config: UnlearnerOptions, told: dict[str, Any]) -> str | None:
    """Why a gate that must pass could not, whatever the unlearner did: nobody need wait for it."""
    if config.is_exact or case.policy == "fast":
        return None
    of_parent = gather_evidence(case, case.parent, told)
    needed = [g for g in forgetting(of_parent, exact=False) if g.role == "must_pass"]
    reason = next((g.reason for g in needed if (g.power or 0.0) < ENOUGH_POWER), None)
    # an attack with them passes models that over-forgot, so that alone it may not publish
    if reason is not None and of_parent.references is not None:
        return f"{reason}; reference models do not stand in"
    return reason


def _run(
    case: Case,
    config: UnlearnerOptions,
    told: dict[str, Any],
    tried: list[dict[str, Any]],
    team: Team,
) -> nn.Module:
    start = time.monotonic()

    def progress(fraction: float, metrics: dict[str, float]) -> None:
        spent = time.monotonic() - start
        left = spent / fraction * (1 - fraction) if fraction > 0 else None
        case.report("unlearning", fraction, left, told, metrics)

    case.report("unlearning", 0.0, None, told, {})
    problem = Problem(
        model=copy.deepcopy(case.parent).requires_grad_(True),
        fresh=case.fresh,
        forget=case.forget,
        retain=case.retain,
        tuning=case.tuning,
        recipe=case.recipe,
        importance=case.importance,
        selector=case.selector,
        num_classes=case.num_classes,
        seed=case.seed,
        purpose=case.purpose,
        batch_size=case.batch_size,
        bn_policy=case.bn_policy,
        device=case.device,
        progress=progress,
        deadline=case.deadline,
        tried=tried,
        masks=case.zeros if config.keeps_zeros and case.zeros else None,
        keeper=case.keeper,
        team=team,
    )
    problem.check_time()
    seed_everything(case.seed)
    model = unlearners[config.name].run(problem, config).eval()
    problem.check_time()
    _check(case.parent, model)
    assert masks.holds(model, problem.masks or {}), f"{config.name} moved weights that are pruned"
    return model


def _check(parent: nn.Module, model: nn.Module) -> None:
    """Refuse a model that is not finite, or whose parameters are the parent's."""
    found = change(parent, model)
    if found.non_finite:
        raise Diverged(f"{found.non_finite} values of the model are NaN or infinite")
    if found.relative <= gates.SMALLEST_CHANGE:
        raise NothingChanged("the unlearner left the parameters as they were")


def _of_zeros(case: Case, model: nn.Module) -> str:
    """Say what became of the zeros of a pruned parent; nothing of a dense one."""
    if not case.zeros:
        return ""
    before, after = (f"{100 * masks.share_of_zeros(each):.0f} %" for each in (case.parent, model))
    if masks.holds(model, case.zeros):
        return f"; the zeros of the parent are kept, {before} of its layer weights"
    return (
        f"; the zeros of the parent are not kept, {before} of its layer weights, {after} now: "
        "the forget set had a part in them (prune_first with retrain makes a mask without it)"
    )


def _judge(case: Case, evidence: Evidence, rung: Rung) -> Rung:
    findings = run_all(evidence) + run_chosen(
        evidence,
        audits_for(case.policy, case.selector, exact=rung.exact, num_classes=case.num_classes),
    )
    judged = gates.judge_all(evidence, exact=rung.exact, policy=case.policy, findings=findings)
    publish, reason = may_publish(case.policy, rung.exact, judged)
    again = Again()
    if publish:
        again = look_again(evidence, case.earlier, batch_size=case.batch_size, device=case.device)
        findings += again.findings
    if again.came_back:
        reason += f"; forgotten before, and recognised again: {', '.join(again.came_back)}"
    status: Literal["published", "refused"] = "published" if publish else "refused"
    return rung.model_copy(
        update={
            "status": status,
            "reason": reason,
            "gates": judged,
            "findings": findings,
            "earlier": again.gates,
            "per_request": {
                request: _of_request(evidence, rows, case.policy, exact=rung.exact)
                for request, rows in case.requests.items()
            },
            "histogram": _histogram(evidence),
        }
    )


def _of_request(
    evidence: Evidence, rows: list[int], policy: Policy, *, exact: bool
) -> RequestEvidence:
    """Forgetting gates and findings on one request's own records, with their own power."""
    own = evidence.of_forget(positions(evidence.forget, rows))
    findings: list[Finding] = []
    names = ["accuracy", "membership", *(["rmia", "lira"] if own.references else [])]
    for name in names:
        entry = audits[name]
        try:
            found = entry.run(own, entry.config.model_validate({"name": name}))
        except MissingEvidence:
            continue  # the gates of this request say what is missing
        findings += [finding for finding in found if finding.scope == "forget"]
    judged = forgetting(own, exact=exact)
    if policy == "strict" and not exact:
        judged += for_purpose([per_record_attack(findings)], own.purpose)
    return RequestEvidence(gates=judged, findings=findings)


def _histogram(evidence: Evidence) -> dict[str, list[float]] | None:
    """Shares of records per bin of the margin, outliers in the outer bins."""
    try:
        attack = population(evidence)
        forget, holdout = attack.scores("after")
        forget_before, _ = attack.scores("before")
    except MissingEvidence:
        return None  # the membership gate says what is missing
    scores = torch.cat([forget, holdout, forget_before])
    scores = scores[torch.isfinite(scores)].sort().values
    if len(scores) == 0:
        return None
    low, high = float(scores[len(scores) // 100]), float(scores[-1 - len(scores) // 100])
    if not math.isfinite(high - low) or high <= low:
        return None
    edges = torch.linspace(low, high, _HISTOGRAM_BINS + 1, dtype=torch.float64)

    def shares(values: Tensor, weights: Tensor) -> list[float]:
        bins = torch.bucketize(values, edges[1:-1])
        mass = torch.zeros(_HISTOGRAM_BINS, dtype=torch.float64).index_add_(0, bins, weights)
        return [float(share) for share in mass / mass.sum()]

    alike = torch.ones(len(forget), dtype=torch.float64)
    return {
        "edges": [float(edge) for edge in edges],
        "forget": shares(forget, alike),
        "holdout": shares(holdout, attack.match.weights),
        "forget_before": shares(forget_before, alike),
    }
