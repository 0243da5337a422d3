"""Rows that are valid by default; override what matters."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from app.store import datasets, jobs, keys, models, requests, tables
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
        "num_classes": len({row[1] for row in rows}),
        "modality": "features",
        "details": {},
    }
    blob = f"{claim.job.tenant_id}/jobs/{job_id}/e{claim.epoch}/records.parquet"
    jobs.finish_ingest(session, claim, result=result, blob=blob, index=rows)


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


def prepare(session: Session, job_id: str, importance_blob: str | None = None) -> None:
    """Do a prepare job."""
    claim = jobs.claim(session, job_id, "preparer")
    assert claim is not None
    jobs.finish_prepare(
        session,
        claim,
        num_parameters=10,
        findings=[{"audit": "x"}],
        importance_blob=importance_blob,
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
