"""More writers than threads, on a database that takes one at a time."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from fastapi import FastAPI
from httpx2 import ASGITransport, AsyncClient

from app.api import unlearn_requests

from .world import Tenant

WRITERS = 60


def test_a_writer_can_end_while_all_threads_wait_for_it(
    api: FastAPI, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_id = tenant.ready_model()
    made = [tenant.forget(model_id).json()["id"] for _ in range(WRITERS)]
    shape = unlearn_requests.shape

    def slowly(*arguments: Any) -> Any:
        monkeypatch.setattr(unlearn_requests, "shape", shape)
        time.sleep(2.0)  # until all others wait for this one
        return shape(*arguments)

    monkeypatch.setattr(unlearn_requests, "shape", slowly)

    async def cancel_all() -> list[int]:
        transport = ASGITransport(app=api)
        headers = {"Authorization": f"Bearer {tenant.key}"}
        async with AsyncClient(
            transport=transport, base_url="http://lethe", headers=headers
        ) as client:
            calls = [client.delete(f"/unlearn-requests/{request_id}") for request_id in made]
            return [answer.status_code for answer in await asyncio.gather(*calls)]

    assert asyncio.run(cancel_all()) == [202] * WRITERS
