"""From rows to an order for the runner, and from its result to the transaction that ends the job.

The runner has parsed hostile files, so whatever it hands over is checked: its result against a
schema, its files for being plain files of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import structlog
from pydantic import Field, TypeAdapter, ValidationError

from app.store import jobs, situations
from app.store.blobs import BlobDamaged, BlobMissing, blobs, digest
from app.store.failpoints import failpoint
from app.store.jobs import Claim
from app.store.session import settings, transaction
from core.errors import InvalidInput
from core.findings import Finding, Rung
from core.header import read_header
from core.policies import ladder
from core.situation import Estimator, Policy, Situation
from worker import gathering
from worker.lease import OUTAGE, insist
from worker.parcels import NO_ROOM, Adopt, adopt, check_digest, fetch, plain, wanted
from worker.protocol import Checkpoint
from worker.results import Ending, Result
from worker.supervisor import RunnerDied

PREPARE_SEED = 0
PREPARE_BATCH_SIZE = 256
RESUMABLE = frozenset({"unlearn", "oracle", "bank"})
"""Kinds whose training goes on where an interrupted attempt left it."""

_log = structlog.get_logger(__name__)
_IndexRow = tuple[str, int, Literal["train", "holdout"], str | None]
_index_row: TypeAdapter[_IndexRow] = TypeAdapter(_IndexRow)


class Ingested(Result):
    """What ``core.ingest`` returns."""

    num_train: int
    num_holdout: int
    num_classes: int
    modality: Literal["image", "features"]
    details: dict[str, Any]


class Converted(Result):
    """What ``core.convert`` returns."""

    weights: Literal["model.safetensors"]
    digest: str
    num_tensors: int
    unwrapped: list[Annotated[str, Field(max_length=64)]] = Field(max_length=8)
    prefix: str = Field(max_length=256)


class ImportanceSummary(Result):
    """What ``core.importance`` says of stored importance."""

    estimator: Estimator
    num_records: int = Field(ge=1)
    stale: int = Field(ge=0)


class Prepared(Result):
    """What ``core.prepare`` returns."""

    num_parameters: int
    findings: list[Finding]
    importance: Literal["importance.safetensors"] | None
    importance_summary: ImportanceSummary | None


class Unlearned(Result):
    """What ``core.ladder`` returns."""

    outcome: Literal["erased_exact", "erased_approximate", "no_influence", "not_erased"]
    published: int | None
    rungs: list[Rung]
    weights: Literal["model.safetensors"] | None
    digest: str | None
    importance: Literal["importance.safetensors"] | None = None
    """Left of the parent's, where the training data stays elsewhere."""
    importance_summary: ImportanceSummary | None = None
    code: Literal["ladder_exhausted", "evidence_insufficient"] | None
    """Why nothing may be published."""
    reason: str


def order(claim: Claim, out: Path) -> dict[str, Any]:
    """Return what the runner is told: paths of local files and plain values, nothing else.

    Raises:
        BlobMissing: if a blob that a row names is missing.
        BlobDamaged: if one is not what was stored.
    """
    make = {
        "ingest": _ingest,
        "convert": _convert,
        "prepare": _prepare,
        "unlearn": _unlearn,
        **gathering.ORDERS,
    }
    inbox = out.with_name("in")
    arguments = fetch(make[claim.job.kind](claim), inbox) | {"out": str(out)}
    # Each thread reserves address space, which is what bounds a conversion.
    threads = 1 if claim.job.kind == "convert" else settings().torch_threads
    made = {"kind": claim.job.kind, "threads": threads, "arguments": arguments}
    if claim.job.kind in RESUMABLE:
        made["checkpoints"] = {
            "seconds": settings().checkpoint_seconds,
            "found": _intact(claim.job.checkpoint_blob, claim.job.checkpoint_digest, inbox),
        }
    return made


def seal(claim: Claim, result: dict[str, Any], out: Path, adopt: Adopt = adopt) -> Ending:
    """Move the files of a finished runner to the blobs, and return the transaction that is left.

    Args:
        claim: of the attempt.
        result: what the runner said.
        out: where it left its files.
        adopt: moves each of them.

    Raises:
        RunnerDied: if the result or its files are not what they should be.
    """
    ends = {
        "ingest": _ingested,
        "convert": _converted,
        "prepare": _prepared,
        "unlearn": _unlearned,
        **gathering.ENDINGS,
    }
    try:
        return ends[claim.job.kind](claim, result, out, adopt)
    except ValidationError as error:
        raise RunnerDied(f"runner returned a result with {error.error_count()} errors") from None


def keep(claim: Claim, event: Checkpoint, out: Path) -> None:
    """Take a checkpoint over from the runner, and note it.

    While the database or the storage is away, or has no room, do not: the training goes on, and
    the next one may be kept.

    Raises:
        RunnerDied: if the file is not what was announced.
        LeaseLost: if the job is not this attempt's any more.
    """
    file = out / event.file
    check_digest(file, event.digest)
    try:
        blob = adopt(claim, file)
        with transaction() as session:
            jobs.keep_checkpoint(session, claim, blob=blob, digest=event.digest)
    except (*OUTAGE, OSError) as error:
        if isinstance(error, OSError) and error.errno not in NO_ROOM:
            raise
        _log.warning("checkpoint_not_noted", error=type(error).__name__)
        # One left after the other would use up the room that the runner has.
        file.unlink(missing_ok=True)
        return
    failpoint("worker.checkpoint_kept")


def _intact(blob: str | None, announced: str | None, inbox: Path) -> str | None:
    """Return the path of a checkpoint; None if there is none, or not as it was written."""
    if blob is None:
        return None
    try:
        found = blobs().fetch(blob, inbox)
        if digest(found) == announced:
            return str(found)
    except (BlobMissing, BlobDamaged):
        pass
    _log.warning("checkpoint_unusable")
    return None


def _ingest(claim: Claim) -> dict[str, Any]:
    assert claim.dataset is not None
    return {"source": wanted(claim.dataset.blob), "max_records": settings().max_records}


def _convert(claim: Claim) -> dict[str, Any]:
    assert claim.version is not None
    assert claim.model is not None
    return {
        "source": wanted(claim.version.blob),
        "architecture": claim.model.architecture,
        "max_parameters": settings().max_parameters,
    }


def _prepare(claim: Claim) -> dict[str, Any]:
    assert claim.version is not None
    # Where the training data is, importance is measured there, whatever was stored before.
    stored = claim.version.importance_blob if claim.dataset is None else None
    return {
        **gathering.material(claim),
        "weights": wanted(claim.version.blob),
        "importance": wanted(stored),
        "seed": PREPARE_SEED,
        "batch_size": PREPARE_BATCH_SIZE,
    }


def _unlearn(claim: Claim) -> dict[str, Any]:
    assert claim.version is not None
    assert claim.model is not None
    return {
        **_prepare(claim),
        "importance": wanted(claim.version.importance_blob),
        "bank": wanted(claim.model.bank_blob),
        "forget_samples": wanted(claim.samples.blob if claim.samples else None),
        "requests": {name: rows.tolist() for name, rows in claim.requests.items()},
        "earlier": {name: rows.tolist() for name, rows in claim.earlier.items()},
        "selector": claim.selector,
        "forget_classes": list(claim.forget_classes),
        "policy": claim.job.policy,
        "purpose": claim.purpose,
        "ladder": ladder(_situation(claim)),
        "processes": settings().train_processes,
        **claim.job.options,
    }


def _situation(claim: Claim) -> Situation:
    assert claim.model is not None
    forget = {row for rows in claim.requests.values() for row in rows.tolist()}
    return situations.situation(
        claim.model,
        claim.dataset,
        policy=cast("Policy", claim.job.policy),
        selector=claim.selector,
        num_forget=len(forget),
        version=claim.version,
        num_excluded=len(claim.excluded),
        unlearner=claim.job.unlearner,
        spent=claim.spent,
        purpose=claim.purpose,
        time_budget_seconds=claim.job.options.get("time_limit_seconds"),
        seconds_per_pass=claim.seconds_per_pass,
    )


def _ingested(claim: Claim, raw: dict[str, Any], out: Path, adopt: Adopt) -> Ending:
    result = Ingested.model_validate(raw)
    if not _index(claim, _read_index(plain(out / "index.jsonl"))):
        return partial(jobs.cancelled, claim=claim)
    blob = adopt(claim, out / "records.parquet")
    return partial(jobs.finish_ingest, claim=claim, result=result.model_dump(), blob=blob)


def _index(claim: Claim, rows: Iterator[_IndexRow]) -> bool:
    """Index the records in short transactions; False if nobody wants them any more."""

    def clear() -> bool:
        with transaction() as session:
            return jobs.clear_index(session, claim)

    while insist(clear):
        pass
    start = 0
    while piece := [*islice(rows, jobs.CHUNK)]:

        def add(start: int = start, piece: list[_IndexRow] = piece) -> bool:
            with transaction() as session:
                return jobs.add_to_index(session, claim, start, piece)

        if not insist(add):
            return False
        start += len(piece)
    return True


def _converted(claim: Claim, raw: dict[str, Any], out: Path, adopt: Adopt) -> Ending:
    result = Converted.model_validate(raw)
    weights = out / result.weights
    size_bytes = check_digest(weights, result.digest)
    try:
        found = read_header(weights)
    except InvalidInput as error:
        raise RunnerDied(f"runner wrote a file that is not safetensors: {error.code}") from None
    if len(found.tensors) != result.num_tensors:
        raise RunnerDied("runner wrote another number of tensors than it says")
    return partial(
        jobs.finish_convert,
        claim=claim,
        blob=adopt(claim, weights),
        digest=result.digest,
        size_bytes=size_bytes,
        verdict=result.model_dump(include={"unwrapped", "prefix"}),
    )


def _prepared(claim: Claim, raw: dict[str, Any], out: Path, adopt: Adopt) -> Ending:
    result = Prepared.model_validate(raw)
    blob = None if result.importance is None else adopt(claim, out / result.importance)
    return partial(
        jobs.finish_prepare,
        claim=claim,
        num_parameters=result.num_parameters,
        findings=[finding.model_dump(mode="json") for finding in result.findings],
        importance_blob=blob,
        importance=_summary(result),
    )


def _unlearned(claim: Claim, raw: dict[str, Any], out: Path, adopt: Adopt) -> Ending:
    result = Unlearned.model_validate(raw)
    rungs = [rung.model_dump(mode="json") for rung in result.rungs]
    cost = {
        "unlearn_seconds": sum(rung.seconds for rung in result.rungs),
        "audit_seconds": sum(rung.audit_seconds for rung in result.rungs),
    }
    if result.weights is None:
        return partial(
            jobs.exhaust,
            claim=claim,
            code=result.code or "ladder_exhausted",
            detail=_reason(claim, result),
            rungs=rungs,
            cost=cost,
        )
    weights = out / result.weights
    size_bytes = check_digest(weights, result.digest)
    assert result.digest is not None, "no file has no digest"
    return partial(
        jobs.publish,
        claim=claim,
        outcome=result.outcome,
        rungs=rungs,
        blob=adopt(claim, weights),
        digest=result.digest,
        size_bytes=size_bytes,
        published=result.published,
        reason=_reason(claim, result),
        cost=cost,
        importance_blob=None
        if result.importance is None
        else adopt(claim, out / result.importance),
        importance=_summary(result),
    )


def _summary(result: Prepared | Unlearned) -> dict[str, Any] | None:
    found = result.importance_summary
    return None if found is None else found.model_dump()


def _reason(claim: Claim, result: Unlearned) -> str:
    """Why it ended so; a spent budget, which changes the order of the rungs, is said first."""
    spent = claim.spent.reason() if claim.job.unlearner is None else None
    if spent is None:
        return result.reason
    assert claim.model is not None
    then = "retrain first" if claim.model.recipe else "there is no recipe to retrain with"
    return f"budget spent ({spent}): {then}; {result.reason}"


def _read_index(file: Path) -> Iterator[_IndexRow]:
    with file.open(encoding="ascii") as lines:
        for line in lines:
            try:
                yield _index_row.validate_python(json.loads(line), strict=False)
            except ValueError:
                # Without the line itself: it holds the ids of records and subjects.
                raise RunnerDied("runner wrote an index that cannot be read") from None
