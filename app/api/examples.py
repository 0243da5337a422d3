"""Request examples of the OpenAPI document. Tests send every one of them.

Ids in them are replaced by real ones before they are sent; everything else is sent as it stands.
"""

from __future__ import annotations

from typing import Any

MODEL_ID = "mdl_01JD0000000000000000000000"
DATASET_ID = "dst_01JD0000000000000000000000"
REQUEST_ID = "req_01JD0000000000000000000000"
UPLOAD_ID = "upl_01JD0000000000000000000000"

DATASET: dict[str, Any] = {
    "digits": {
        "name": "digits",
        "class_names": ["zero", "one", "two", "three", "four", "five", "six", "seven"],
        "metadata": {"team": "vision"},
    }
}
MODEL: dict[str, Any] = {
    "linear": {
        "name": "digits-linear",
        "architecture": {"name": "linear", "in_features": 64, "num_classes": 10},
        "preprocessing": {"scale": 0.0625},
        "dataset": DATASET_ID,
        "holdout": DATASET_ID,
        "recipe": {
            "epochs": 20,
            "batch_size": 64,
            "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9},
            "schedule": {"name": "cosine"},
            "seed": 1,
        },
    }
}
SOURCED_DATASET: dict[str, Any] = {
    "upload": {"name": "digits", "source": {"type": "upload", "id": UPLOAD_ID}}
}
SOURCED_MODEL: dict[str, Any] = {
    "upload": {
        "name": "digits-linear",
        "architecture": {"name": "linear", "in_features": 64, "num_classes": 10},
        "preprocessing": {"scale": 0.0625},
        "dataset": DATASET_ID,
        "source": {"type": "upload", "id": UPLOAD_ID},
    },
}
UPLOAD_COMPLETE: dict[str, Any] = {"without a digest": {}}
UNLEARN_REQUESTS: dict[str, Any] = {
    "records": {
        "model": MODEL_ID,
        "forget": {"type": "record_ids", "record_ids": ["digit-0001", "digit-0002"]},
        "reason": "gdpr_art_17_1_b",
        "received_at": "2026-11-20T09:00:00Z",
        "metadata": {"ticket": "PRIV-88"},
    },
    "subject": {
        "model": f"{MODEL_ID}@serving",
        "forget": {"type": "subject", "subject_ref": "customer-4711"},
    },
    "class": {
        "model": MODEL_ID,
        "forget": {"type": "class", "class": "seven"},
        "policy": "standard",
        "unlearner": {"name": "ssd"},
        "seed": 7,
    },
}
AUDITS: dict[str, Any] = {
    "everything": {},
    "one request": {
        "audits": ["membership", {"name": "accuracy", "per_class": False}],
        "request": REQUEST_ID,
        "seed": 7,
    },
}
ORACLES: dict[str, Any] = {"another seed": {"seed": 2}}
REFERENCE_BANKS: dict[str, Any] = {"eight": {"models": 8, "seed": 1}}
RECOMMENDATIONS: dict[str, Any] = {
    "class": {
        "model": MODEL_ID,
        "forget": {"type": "class", "class": "seven"},
        "policy": "standard",
        "time_budget_seconds": 3600,
    },
    "poison": {
        "model": MODEL_ID,
        "forget": {"type": "record_ids", "record_ids": ["digit-0001"]},
        "purpose": "poison_removal",
    },
}
API_KEYS: dict[str, Any] = {
    "pipeline": {"name": "nightly", "scopes": ["models:read", "requests:create"]},
    "auditor from one network": {
        "name": "yearly audit",
        "roles": ["auditor"],
        "networks": ["192.0.2.0/24"],
        "expires_in_days": 14,
    },
}
ROTATIONS: dict[str, Any] = {"a day of overlap": {"overlap_hours": 24}}
