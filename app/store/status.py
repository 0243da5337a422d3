"""States of jobs, requests, versions and datasets, and the moves that are allowed."""

from __future__ import annotations

from typing import Literal, get_args

from app.settings import Need

JobStatus = Literal["queued", "running", "succeeded", "failed", "cancelled"]
JobKind = Literal["ingest", "convert", "prepare", "unlearn", "audit", "oracle", "bank"]
RequestStatus = Literal[
    "queued", "processing", "applied", "completed", "needs_attention", "cancelled"
]
RequestPurpose = Literal["erasure", "poison_removal"]
VersionStatus = Literal["validating", "ready", "rejected", "withdrawn"]
VersionRole = Literal["chain", "oracle"]
DatasetStatus = Literal["validating", "ready", "rejected", "deleted"]
ModelStatus = Literal["active", "deleted"]
UploadStatus = Literal[
    "created", "receiving", "received", "verified", "failed", "expired", "aborted"
]

NEEDS: dict[str, Need] = {
    "ingest": "cpu",
    "convert": "cpu",
    "prepare": "gpu",
    "unlearn": "gpu",
    "audit": "gpu",
    "oracle": "gpu",
    "bank": "gpu",
}
"""What a worker should have for a job; where there is no accelerator, ``gpu`` work runs as well."""

EVIDENCE_KINDS = ("audit", "oracle", "bank")
"""Jobs that change no model and serve no request: they gather evidence."""

BLAMELESS = (
    *("blob_damaged", "blob_missing", "device_unavailable", "gpu_out_of_memory", "internal"),
    *("out_of_memory", "out_of_time", "output_too_large", "runner_died", "storage_full"),
    *("training_process_died", "worker_lost"),
)
"""Codes of failures that say nothing against the upload that was being read or checked."""

UPLOAD_OPEN = ("created", "receiving", "received", "verified")
"""States of uploads that have bytes, or will."""

JOB_TERMINAL: frozenset[str] = frozenset({"succeeded", "failed", "cancelled"})
REQUEST_TERMINAL: frozenset[str] = frozenset({"completed", "cancelled"})

JOB_MOVES: dict[str, frozenset[str]] = {
    "queued": frozenset({"running", "succeeded", "failed", "cancelled"}),
    "running": frozenset({"queued", "succeeded", "failed", "cancelled"}),
    "succeeded": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}


def values(states: object) -> str:
    """SQL list of the states of a Literal, for check constraints."""
    return ", ".join(f"'{state}'" for state in get_args(states))
