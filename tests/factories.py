"""Rows that are valid by default; override what matters."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from app.store import audits, datasets, jobs, keys, models, references, requests, tables, trash
from app.store.blobs import blobs
from app.store.ids import new

DIGEST = "0" * 64


def a_tenant(session: Session, name: str = "acme") -> str:
    """Id of a tenant."""
    return keys.ensure_tenant(session, name).id


def a_raw_dataset(session: Session, tenant_id: str, **over: Any) -> tuple[tables.Dataset, str]:
    """A dataset that is still to be read, and the id of its ingest job."""
    wanted: dict[str, Any] = {
        "name": "people",
        "purpose": None,
        "class_names": None,
        "digest": DIGEST,
        "size_bytes": 1,
        "blob": f"{tenant_id}/uploads/{new('upl')}",
        "meta": {},
    }
    dataset, job = datasets.create(session, tenant_id, **(wanted | over))
    return dataset, job.id


def index(num_train: int = 10, num_holdout: int = 4, num_classes: int = 2) -> list[list[Any]]:
    """Index rows: ids ``r0 ...``, labels in turn, two records per subject ``s0 ...``."""
    rows: list[list[Any]] = []
    for row in range(num_train + num_holdout):
        split = "train" if row < num_train else "holdout"
        rows.append([f"r{row}", row % num_classes, split, f"s{row // 2}"])
    return rows


def ingest(session: Session, job_id: str, rows: list[list[Any]]) -> None:
    """Do an ingest job."""
    claim = jobs.claim(session, job_id, "reader")
    assert claim is not None
    result = {
        "num_train": sum(row[2] == "train" for row in rows),
        "num_holdout": sum(row[2] == "holdout" for row in rows),
        "num_classes": 1 + max((row[1] for row in rows), default=-1),
        "modality": "features",
        "details": {},
    }
    blob = f"{claim.job.tenant_id}/jobs/{job_id}/e{claim.epoch}/records.parquet"
    assert jobs.add_to_index(session, claim, 0, rows)
    jobs.finish_ingest(session, claim, result=result, blob=blob)


def a_dataset(
    session: Session, tenant_id: str, rows: list[list[Any]] | None = None, **over: Any
) -> tables.Dataset:
    """A dataset that is ready."""
    dataset, job_id = a_raw_dataset(session, tenant_id, **over)
    ingest(session, job_id, index() if rows is None else rows)
    return dataset


def a_raw_model(
    session: Session, tenant_id: str, **over: Any
) -> tuple[tables.Model, tables.Version, str]:
    """A model whose first version is still to be prepared, and the id of that job."""
    if "dataset_id" not in over:
        over["dataset_id"] = a_dataset(session, tenant_id).id
    wanted: dict[str, Any] = {
        "name": "net",
        "architecture": {"name": "mlp"},
        "preprocessing": {},
        "recipe": {"epochs": 1},
        "holdout_dataset_id": over["dataset_id"],
        "digest": DIGEST,
        "size_bytes": 1,
        "num_parameters": 10,
        "blob": f"{tenant_id}/models/{new('blb')}.safetensors",
        "meta": {},
    }
    model, version, job = models.create(session, tenant_id, **(wanted | over))
    return model, version, job.id


def prepare(session: Session, job_id: str, importance_blob: str | None = None, **over: Any) -> None:
    """Do a prepare job."""
    claim = jobs.claim(session, job_id, "preparer")
    assert claim is not None
    jobs.finish_prepare(
        session,
        claim,
        num_parameters=10,
        findings=[{"audit": "x"}],
        importance_blob=importance_blob,
        **over,
    )


def a_model(session: Session, tenant_id: str, **over: Any) -> tables.Model:
    """A model whose first version is ready, with stored importance."""
    model, _, job_id = a_raw_model(session, tenant_id, **over)
    prepare(session, job_id, f"{tenant_id}/jobs/{job_id}/e1/importance.safetensors")
    return model


def a_request(session: Session, tenant_id: str, model_id: str, **over: Any) -> tables.Request:
    """A request for one record, unless told otherwise."""
    if not {"selector", "record_ids"} & over.keys():
        over["record_ids"] = ["r0"]
    wanted: dict[str, Any] = {"model_id": model_id, "selector": "record_ids"}
    return requests.receive(session, tenant_id, **(wanted | over))


def publish(session: Session, claim: jobs.Claim, **over: Any) -> tables.Version | None:
    """Publish a claim's job with one exact rung."""
    wanted: dict[str, Any] = {
        "outcome": "erased_exact",
        "rungs": [{"index": 0, "status": "published", "unlearner": {"name": "retrain"}}],
        "blob": f"{claim.job.tenant_id}/jobs/{claim.job.id}/e{claim.epoch}/model.safetensors",
        "digest": "1" * 64,
        "size_bytes": 2,
        "published": 0,
    }
    return jobs.publish(session, claim, **(wanted | over))


def published(session: Session, tenant_id: str, model_id: str, **over: Any) -> tables.Version:
    """The version that forgot what a new request names (``r0``)."""
    request = a_request(session, tenant_id, model_id, **over)
    claim = jobs.claim(session, request.job_id, "w")
    assert claim is not None
    version = publish(session, claim)
    assert version is not None
    return version


def an_audit(
    session: Session, tenant_id: str, model_id: str, ref: str = "@serving", **over: Any
) -> tables.Job:
    """A queued audit of a version with one audit."""
    found = audits.occasion(session, tenant_id, model_id, ref, over.pop("request", None))
    options = {"seed": 0, "batch_size": 256, "time_limit_seconds": 600.0} | over
    return audits.queue(session, found, [{"name": "sanity"}], options)


def an_oracle(session: Session, tenant_id: str, model_id: str, seed: int = 0) -> tables.Version:
    """A trained oracle of the version in force."""
    options = {"seed": seed, "time_limit_seconds": 600.0}
    job = references.queue_oracle(session, tenant_id, model_id, "@serving", options)
    claim = jobs.claim(session, job.id, "w")
    assert claim is not None
    blob = f"{tenant_id}/jobs/{job.id}/e1/model.safetensors"
    made = jobs.finish_oracle(session, claim, blob=blob, digest="2" * 64, size_bytes=3)
    assert made is not None
    return made


def a_bank(session: Session, tenant_id: str, model_id: str, num_models: int = 4) -> str:
    """Blob key of a model's trained bank."""
    options = {"models": num_models, "seed": 0, "batch_size": 256}
    job = references.queue_bank(session, tenant_id, model_id, options)
    claim = jobs.claim(session, job.id, "w")
    assert claim is not None
    blob = f"{tenant_id}/jobs/{job.id}/e1/bank.safetensors"
    jobs.finish_bank(session, claim, blob=blob, num_models=num_models)
    return blob


def waiting_on(session: Session, job: tables.Job) -> str | None:
    """What one job waits for."""
    return jobs.waiting_on(session, [job]).get(job.id)


def bytes_for_all(session: Session) -> None:
    """Put a file under every key that a row counts on; an empty one where there is none."""
    for key in trash.named(session):
        path = blobs().path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
