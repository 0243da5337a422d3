"""Something done again and again beside what is measured."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager


@contextmanager
def repeated(work: Callable[[float], object], every: float) -> Iterator[None]:
    """Call ``work`` in a thread until the end of the block.

    A call that comes late is followed by the next one at once.

    Args:
        work: is told when its call was due (``time.perf_counter``). The first that fails is the
            last, and what it raised is raised at the end of the block.
        every: seconds from one call to the next.
    """
    done = threading.Event()

    def calls() -> None:
        due = time.perf_counter()
        while not done.is_set():
            work(due)
            due += every
            done.wait(due - time.perf_counter())

    with ThreadPoolExecutor(1) as pool:
        calling = pool.submit(calls)
        try:
            yield
        finally:
            done.set()
        calling.result()
