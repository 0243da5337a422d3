"""Bells that nobody hears."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from app import bell
from app.settings import Settings, get_settings

WINDOW = [f"job_{number}" for number in range(32)]


@pytest.fixture(params=["memory://", pytest.param("redis", marks=pytest.mark.redis)])
def need(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A kind of work whose queue is empty."""
    url = request.param if "://" in request.param else request.getfixturevalue("redis_url")
    bell.configure(Settings(data_dir=tmp_path, broker_url=url))
    yield uuid.uuid4().hex
    bell.configure(get_settings())


def waiting(need: str) -> int:
    with bell.celery.connection_for_write() as connection:
        return bell._waiting(connection, need)


def test_while_workers_are_busy_bells_do_not_pile_up(need: str) -> None:
    for _ in range(20):
        bell.send(*WINDOW, need=need)
    assert waiting(need) == bell.MOST_WAITING


def test_a_large_window_is_rung_whole(need: str) -> None:
    window = [f"job_{number}" for number in range(100)]
    bell.send(*window, need=need)
    assert waiting(need) == 100
