"""The bench: one runner ahead, used once."""

from __future__ import annotations

import time
from collections.abc import Callable

from worker.spare import Bench
from worker.supervisor import Runner


def test_a_spare_is_handed_out_once(spawn: Callable[[], Runner]) -> None:
    bench = Bench(spawn, ahead=True)
    bench.refill()
    first, second = bench.take(), bench.take()
    assert first.pid != second.pid
    assert first.alive
    assert second.alive


def test_refilling_keeps_a_living_spare(spawn: Callable[[], Runner]) -> None:
    bench = Bench(spawn, ahead=True)
    bench.refill()
    spare = bench._spare
    bench.refill()
    assert bench.take() is spare


def test_a_dead_spare_is_replaced(spawn: Callable[[], Runner]) -> None:
    bench = Bench(spawn, ahead=True)
    bench.refill()
    spare = bench._spare
    assert spare is not None
    spare.kill()
    taken = bench.take()
    assert taken.pid != spare.pid
    assert taken.alive
    assert not spare.scratch.exists()


def test_no_spare_is_kept_when_none_is_wanted(spawn: Callable[[], Runner]) -> None:
    bench = Bench(spawn, ahead=False)
    bench.refill()
    assert bench._spare is None
    assert bench.take().alive


def test_clearing_ends_the_spare(spawn: Callable[[], Runner]) -> None:
    bench = Bench(spawn, ahead=True)
    bench.refill()
    spare = bench._spare
    assert spare is not None
    while not spare.ready:
        time.sleep(0.01)
    bench.clear()
    assert not spare.alive
