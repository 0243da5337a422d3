"""Stay with a runner until it is done, or until there is a reason to end it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from worker.lease import Heartbeat
from worker.protocol import Done, Failed, Progress
from worker.supervisor import Runner, RunnerDied

TICK_SECONDS = 0.1
DRAIN_SECONDS = 5.0
"""How long a job may go on after its worker was asked to end."""

SETTLED_SECONDS = 1.0
"""A job that lasts longer than this is not disturbed by the start of the next spare runner."""


class Draining(Exception):
    """The worker is ending, and the job would not have been done in time."""


def accompany(
    runner: Runner,
    beat: Heartbeat,
    *,
    closing: threading.Event,
    stall_seconds: float,
    settled: Callable[[], None],
    drain_seconds: float = DRAIN_SECONDS,
) -> Done | Failed:
    """Return the last word of ``runner``, passing its progress on to ``beat``.

    Args:
        runner: has its order.
        beat: renews the lease meanwhile.
        closing: set when the worker is asked to end.
        stall_seconds: a runner that says nothing for so long is as good as dead.
        settled: called again and again once the job is under way.
        drain_seconds: how long the job may go on once ``closing`` is set.

    Raises:
        RunnerDied: if it ended without a last word, or stalled.
        LeaseLost: if the job belongs to somebody else now.
        CancelRequested: if the job is to be cancelled.
        Draining: if the worker ends first.
    """
    started = heard_at = time.monotonic()
    drained_at: float | None = None
    while True:
        event = runner.hear(TICK_SECONDS)
        beat.check()
        if isinstance(event, Done | Failed):
            return event
        now = time.monotonic()
        if event is not None:
            heard_at = now
        if isinstance(event, Progress):
            beat.tell(event)
        if now - heard_at > stall_seconds:
            raise RunnerDied(f"runner said nothing for {stall_seconds:g} s")
        if closing.is_set():
            drained_at = drained_at or now + drain_seconds
            if now >= drained_at:
                raise Draining
        elif now - started > SETTLED_SECONDS:
            settled()
