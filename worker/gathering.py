"""Orders and endings of the jobs that gather evidence: audits, oracles, reference models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from app.store import jobs
from app.store.jobs import Claim
from app.store.references import MOST_MODELS
from app.store.session import settings
from core.findings import Finding, Processes
from worker.parcels import Adopt, check_digest, wanted
from worker.results import Ending, Result


class Audited(Result):
    """What ``core.audit_job`` returns."""

    findings: list[Finding]


class Trained(Result):
    """What ``core.oracle_job`` returns."""

    weights: Literal["model.safetensors"]
    digest: str
    processes: Processes | None = None


class Banked(Result):
    """What ``core.bank_job`` returns."""

    bank: Literal["bank.safetensors"]
    models: int = Field(ge=1, le=MOST_MODELS)
    processes: Processes | None = None


def material(claim: Claim) -> dict[str, Any]:
    """Return what every work on a model is told."""
    assert claim.model is not None
    return {
        "architecture": claim.model.architecture,
        "preprocessing": claim.model.preprocessing,
        "dataset": wanted(claim.dataset.blob if claim.dataset else None),
        "holdout": wanted(claim.holdout.blob if claim.holdout else None),
        "recipe": claim.model.recipe,
        "excluded": claim.excluded.tolist(),
        "split_key": claim.model.split_key,
        "device": settings().device,
    }


def _audit(claim: Claim) -> dict[str, Any]:
    assert claim.model is not None
    assert claim.version is not None
    assert claim.subject is not None
    before = claim.subject.before
    options = {name: value for name, value in claim.job.options.items() if name != "request"}
    return {
        **material(claim),
        "weights": wanted(claim.version.blob),
        "parent": None if before is None else wanted(before.blob),
        "oracles": [wanted(oracle.blob) for oracle in claim.oracles],
        "bank": wanted(claim.model.bank_blob) if claim.subject.in_force else None,
        "forget_rows": claim.subject.rows.tolist(),
        "selector": claim.selector,
        "forget_classes": list(claim.forget_classes),
        **options,
    }


def _oracle(claim: Claim) -> dict[str, Any]:
    told = material(claim)
    for unused in ("holdout", "split_key"):
        del told[unused]
    return told | {"processes": settings().train_processes} | claim.job.options


def _bank(claim: Claim) -> dict[str, Any]:
    told = {**material(claim), "processes": settings().train_processes}
    return told | claim.job.options


def _audited(claim: Claim, raw: dict[str, Any], _: Path, __: Adopt) -> Ending:
    result = Audited.model_validate(raw)
    findings = [finding.model_dump(mode="json") for finding in result.findings]
    return partial(jobs.finish_audit, claim=claim, findings=findings)


def _trained(claim: Claim, raw: dict[str, Any], out: Path, adopt: Adopt) -> Ending:
    result = Trained.model_validate(raw)
    weights = out / result.weights
    size_bytes = check_digest(weights, result.digest)
    return partial(
        jobs.finish_oracle,
        claim=claim,
        blob=adopt(claim, weights),
        digest=result.digest,
        size_bytes=size_bytes,
        processes=_told(result.processes),
    )


def _banked(claim: Claim, raw: dict[str, Any], out: Path, adopt: Adopt) -> Ending:
    result = Banked.model_validate(raw)
    blob = adopt(claim, out / result.bank)
    return partial(
        jobs.finish_bank,
        claim=claim,
        blob=blob,
        num_models=result.models,
        processes=_told(result.processes),
    )


def _told(processes: Processes | None) -> dict[str, Any] | None:
    return None if processes is None else processes.model_dump(mode="json")


ORDERS: Mapping[str, Callable[[Claim], dict[str, Any]]] = {
    "audit": _audit,
    "oracle": _oracle,
    "bank": _bank,
}
ENDINGS: Mapping[str, Callable[[Claim, dict[str, Any], Path, Adopt], Ending]] = {
    "audit": _audited,
    "oracle": _trained,
    "bank": _banked,
}
