"""Builds the FastAPI object ``api``, and serves it: ``python -m app.main``."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sqlalchemy.exc import SQLAlchemyError

from core.audits import audits as registered
from core.networks import load_extras, networks
from core.unlearners import unlearners

from . import __version__, logs, tracing
from .api import (
    api_keys,
    audit_shapes,
    audits,
    catalogue,
    datasets,
    health,
    jobs,
    models,
    operations,
    problems,
    recommendations,
    request_shapes,
    resumable,
    schema,
    unlearn_requests,
    versions,
)
from .api.door import Door
from .api.server import OPTIONS
from .api.watch import Watch
from .dispatch import Dispatcher
from .settings import get_settings
from .store import homes, keyed
from .store import session as sessions

__all__ = ["OPTIONS", "api", "build", "main"]

ROUTERS = (
    models,
    versions,
    audits,
    datasets,
    resumable,
    unlearn_requests,
    jobs,
    catalogue,
    recommendations,
    api_keys,
    health,
    operations,
)
M_ARENA_MAX = -8
"""Of malloc.h."""
BODIES: list[type[BaseModel]] = [
    models.ModelCreate,
    datasets.DatasetCreate,
    resumable.UploadComplete,
    request_shapes.UnlearnRequestCreate,
    audit_shapes.AuditCreate,
    audit_shapes.OracleCreate,
    audit_shapes.ReferenceBankCreate,
    recommendations.RecommendationCreate,
    api_keys.ApiKeyCreate,
    api_keys.ApiKeyRotate,
]
VARIANTS = {
    ("UnlearnRequestCreate", "unlearner"): [entry.config for entry in unlearners],
    ("ModelCreate", "architecture"): [entry.config for entry in networks],
    ("AuditCreate", "audits"): [entry.config for entry in registered],
}
DESCRIPTION = """Upload a trained model and the data it was trained on, ask for records to be \
forgotten, and get a new version with measured evidence.

1. `POST /datasets` with a parquet file, `POST /models` with a safetensors checkpoint.
2. `POST /unlearn-requests` with an `Idempotency-Key`; the answer names the job.
3. `GET /jobs/{job_id}` until it is over; `Prefer: wait=30` saves polling.
4. `GET /models/{model_id}/versions/@serving/checkpoint`.

Every call but health, readiness and this page needs `Authorization: Bearer lth_...`. Every error \
is an RFC 9457 problem document with a stable `code`. Enumerations may grow."""


class Lethe(FastAPI):
    """The application, with its own OpenAPI document."""

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document, made once."""
        if self.openapi_schema is None:
            self.openapi_schema = schema.document(self, BODIES, VARIANTS, problems.Problem)
        return self.openapi_schema


def build(*, dispatcher: bool = True) -> FastAPI:
    """Build the application.

    Args:
        dispatcher: whether to publish queued jobs to the workers from this process.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        _share_one_heap()
        # A full collection walks everything that torch and its kin made at import, half a million
        # objects: every call waits a quarter of a second for it.
        gc.freeze()
        # Full collections wait until a quarter of what the last one left is new. Without this one,
        # which finds next to nothing, that would be a quarter of all that was frozen.
        gc.collect()
        # Uploads that were on their way when this service was killed, where no worker sweeps.
        homes.remove_leftovers(sessions.settings().data_dir)
        running = Dispatcher() if dispatcher else None
        if running is not None:
            running.start()
        try:
            yield
        finally:
            if running is not None:
                running.stop()
            gc.unfreeze()

    made = Lethe(
        title="Lethe",
        summary="Unlearning as a service",
        description=DESCRIPTION,
        version=__version__,
        lifespan=lifespan,
        redirect_slashes=False,
        redoc_url=None,
        responses=problems.problems(),
        telemetry={
            "tracer_provider": tracing.provider(),
            "metrics": False,
            "logs": False,
            "operation_spans": False,
            "auto_configure": False,
        },
    )
    made.add_middleware(Door)
    made.add_middleware(Watch)
    problems.install(made)
    for part in ROUTERS:
        made.include_router(part.router)
    return made


def _share_one_heap() -> None:
    """Have all threads take memory from one heap, where the C library is glibc.

    It would give most of the threads that serve calls a heap of their own, and what one of them
    freed would stay there, unused by the others and resident.
    """
    with suppress(AttributeError):  # another C library, which has no such heaps
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def _refuse_other_pepper() -> None:
    """End a process that would take people's references for those of nobody."""
    try:
        fault = keyed.pepper_fault()
    except SQLAlchemyError:
        # Away, or not migrated, as `/readyz` says. Without the right pepper no key will be good.
        return
    if fault is not None:
        sys.exit(fault)


api = build()


def main() -> None:
    """Serve the API alone; workers run elsewhere."""
    settings = get_settings()
    logs.configure(settings)
    tracing.start(settings)
    load_extras()
    _refuse_other_pepper()
    try:
        uvicorn.run(api, host=settings.host, port=settings.port, **OPTIONS)
    finally:
        tracing.stop()


if __name__ == "__main__":
    main()
