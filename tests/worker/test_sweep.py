"""What the sweeper removes beside the jobs' own."""

from __future__ import annotations

from app.settings import Settings
from app.store import partial
from worker.sweep import Sweeper


def test_bytes_of_ended_uploads_are_removed(settings: Settings) -> None:
    left = partial.path("ten_1", "upl_1")
    left.parent.mkdir(parents=True)
    left.write_bytes(b"what a killed service left behind")
    sweeper = Sweeper("w", "embedded")
    sweeper._sweep(with_garbage=False)
    assert left.exists()
    sweeper._sweep(with_garbage=True)
    assert not left.exists()
