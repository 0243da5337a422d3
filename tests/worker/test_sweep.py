"""What the sweeper removes beside the jobs' own."""

from __future__ import annotations

from app.settings import Settings
from app.store.blobs import blobs
from tests.store.test_homes import leave
from worker.sweep import Sweeper


def test_what_a_killed_service_had_in_scratch_is_removed(settings: Settings) -> None:
    left = leave(blobs())
    (left / "upload").write_bytes(b"somebody's records")
    Sweeper("w", "embedded")._sweep(with_garbage=True)
    assert not left.exists()
