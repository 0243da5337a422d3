"""What goes on beside a measurement: again and again, and not failing unheard."""

from __future__ import annotations

import threading
from itertools import pairwise

import pytest

from benchmarks.meanwhile import repeated


def test_it_is_called_until_the_end_and_told_when_it_was_due() -> None:
    due: list[float] = []
    enough = threading.Event()

    def work(at: float) -> None:
        due.append(at)
        if len(due) == 3:
            enough.set()

    with repeated(work, every=0.001):
        assert enough.wait(30)
    assert [b - a for a, b in pairwise(due)] == pytest.approx([0.001] * (len(due) - 1))


def test_its_failure_is_raised_at_the_end() -> None:
    failed = threading.Event()

    def work(_: float) -> None:
        failed.set()
        raise ConnectionError("away")

    with pytest.raises(ConnectionError, match="away"), repeated(work, every=0.001):
        assert failed.wait(30)


def test_what_the_block_raises_comes_first() -> None:
    with pytest.raises(KeyError), repeated(lambda _: None, every=0.001):
        raise KeyError
