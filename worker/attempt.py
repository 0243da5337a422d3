"""Stay with a runner until it is done, or until there is a reason to end it."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import structlog
from sqlalchemy.orm import Session

from app.logs import scrubbed
from app.store import jobs
from app.store.blobs import BlobDamaged, BlobMissing, StorageAway
from app.store.failpoints import failpoint
from app.store.jobs import Claim, Renewal
from app.store.session import settings, transaction
from worker import capacity, parcels, sandbox, steps, traces
from worker.lease import GRACE_SECONDS, CancelRequested, Heartbeat
from worker.limits import Limits, OverLimit, Watch, of
from worker.protocol import (
    Checkpoint,
    CheckpointIgnored,
    Done,
    Event,
    Failed,
    Interrupted,
    Progress,
)
from worker.results import Ending
from worker.station import Station
from worker.supervisor import Runner, RunnerDied

TICK_SECONDS = 0.1
DRAIN_SECONDS = 5.0
"""How long a job may go on after its worker was asked to end."""

FAREWELL_SECONDS = 30.0
"""How long its runner may then take to keep the state of its training."""

SETTLED_SECONDS = 1.0
"""A job that lasts longer than this is not disturbed by the start of the next spare runner."""
STORAGE_FULL_SECONDS = 60.0
"""Wait before a job is tried again for which the disk had no room."""
STORAGE_AWAY_SECONDS = 30.0
"""Wait before a job is tried again for which the blob storage did not answer."""
AWAY_PAUSE_SECONDS = 5.0
"""Wait before a file of finished work is sent again to a storage that did not answer."""
LITTLE_BYTES = 64 * 2**20
"""A disk with less room than this counts as full, if a runner says so."""

TRAINING = frozenset({"training", "unlearning"})
"""Phases in which a network learns."""

UNUSABLE: dict[type[Exception], tuple[str, str]] = {
    BlobMissing: ("blob_missing", "Bytes that the job needs are not in the storage."),
    BlobDamaged: (
        "blob_damaged",
        "Bytes that the job needs are not what was stored: their SHA-256 is another.",
    ),
}

_log = structlog.get_logger(__name__)


class Draining(Exception):
    """The worker is ending, and the job would not have been done in time."""


def attempt(claim: Claim, runner: Runner, here: Station) -> Ending:
    """Have the work done while the lease is renewed; return the transaction that is left.

    Raises:
        RunnerDied: if the runner ended without a last word, or its work cannot be believed.
        LeaseLost: if the job belongs to somebody else now.
    """
    limits = of(claim)
    try:
        with Heartbeat(partial(_renew, claim), settings().heartbeat_seconds) as beat:
            failpoint("worker.before_order")
            order = steps.order(claim, runner.out)
            await_walls(runner, beat, settings().stall_seconds)
            lent = parcels.lend(order, runner.inbox)
            runner.give({**lent, "limits": limits.for_child()})
            failpoint("worker.after_order")
            event = accompany(
                runner,
                beat,
                closing=here.closing,
                stall_seconds=settings().stall_seconds,
                settled=here.bench.refill,
                keep=lambda event: steps.keep(claim, event, runner.out),
                limits=limits,
            )
            if isinstance(event, Done):
                failpoint("worker.after_done")
                # What is checked from here on must not change any more.
                runner.kill()
                adopt = partial(_adopt, beat, here.closing)
                ending = steps.seal(claim, event.result, runner.out, adopt)
                failpoint("worker.after_blobs")
                return _noted(claim, runner, ending)
    except CancelRequested:
        return partial(jobs.cancelled, claim=claim)
    except Draining:
        return partial(jobs.release, claim=claim)
    except OverLimit as over:
        _log.warning("runner_over_limit", code=over.code, reason=over.reason)
        event = Failed(event="failed", code=over.code, detail=over.reason, retryable=False)
    except (BlobMissing, BlobDamaged) as error:
        code, detail = UNUSABLE[type(error)]
        _log.error(code, key=str(error))
        return partial(jobs.fail, claim=claim, code=code, detail=detail, retryable=True)
    except (StorageAway, OSError) as error:
        return _wait_for_storage(claim, error)
    if event.code == "storage_full" and _is_full(runner.out):
        return _wait_for_room(claim)
    if event.code == "device_unavailable" and capacity.is_gone():
        _log.error("accelerator_gone", device=settings().device)
        here.is_broken = True
        return partial(jobs.release, claim=claim)
    _log.warning("job_refused", code=event.code, stack=scrubbed(runner.stderr))
    code = event.code
    if claim.job.kind == "convert" and code == "out_of_memory":
        code = "conversion_out_of_memory"
    # An accelerator that answers us may answer the next runner, too.
    retryable = event.retryable or code == "device_unavailable"
    refused = partial(jobs.fail, claim=claim, code=code, detail=event.detail, retryable=retryable)
    return _noted(claim, runner, refused)


def await_walls(runner: Runner, beat: Heartbeat, stall_seconds: float) -> None:
    """Wait until a runner has tried its walls: before, nothing is lent to it, and no order given.

    Raises:
        RunnerDied: if it ended first, took longer, or is walled in below the minimum.
        LeaseLost: if the job belongs to somebody else now.
        CancelRequested: if the job is to be cancelled.
    """
    began_at = time.monotonic()
    while not runner.ready:
        runner.hear(TICK_SECONDS)
        beat.check()
        if time.monotonic() - began_at > stall_seconds:
            raise RunnerDied(f"runner said nothing for {stall_seconds:g} s")
    minimum = settings().sandbox_minimum
    if sandbox.level(runner.walls) < minimum:
        raise RunnerDied(f"runner is walled in below {minimum}")


def _adopt(beat: Heartbeat, closing: threading.Event, claim: Claim, file: Path) -> str:
    """Move a file of finished work to the blobs, however often that takes: it holds hours of work.

    Raises:
        StorageAway: if the storage stays away for long, or the worker ends.
        LeaseLost: if the job belongs to somebody else now.
        CancelRequested: if the job is to be cancelled.
    """
    since = time.monotonic()
    while True:
        try:
            return parcels.adopt(claim, file)
        except StorageAway:
            _log.warning("storage_awaited")
            if time.monotonic() - since > GRACE_SECONDS or closing.wait(AWAY_PAUSE_SECONDS):
                raise
        beat.check()


def _noted(claim: Claim, runner: Runner, ending: Ending) -> Ending:
    """The same end, with the walls around the runner written down first."""
    told = {"level": sandbox.level(runner.walls), "walls": sorted(runner.walls)}

    def end(session: Session) -> None:
        jobs.note_sandbox(session, claim, told)
        ending(session)

    return end


def accompany(
    runner: Runner,
    beat: Heartbeat,
    *,
    closing: threading.Event,
    stall_seconds: float,
    settled: Callable[[], None],
    keep: Callable[[Checkpoint], None] = lambda event: None,  # noqa: ARG005  # to nobody
    drain_seconds: float = DRAIN_SECONDS,
    limits: Limits | None = None,
) -> Done | Failed:
    """Return the last word of ``runner``, passing its progress on to ``beat``.

    Args:
        runner: has its order.
        beat: renews the lease meanwhile.
        closing: set when the worker is asked to end.
        stall_seconds: a runner that says nothing for so long is as good as dead.
        settled: called again and again once the job is under way.
        keep: called with every checkpoint.
        drain_seconds: how long the job may go on once ``closing`` is set; then its runner is asked
            to keep the state of its training.
        limits: what it may use.

    Raises:
        RunnerDied: if it ended without a last word, or stalled.
        OverLimit: if it used too much.
        LeaseLost: if the job belongs to somebody else now.
        CancelRequested: if the job is to be cancelled.
        Draining: if the worker ends first.
    """
    started = heard_at = time.monotonic()
    farewell = _Farewell(runner, drain_seconds)
    watch = Watch(runner, limits)
    while True:
        event = farewell.hear()
        beat.check()
        if isinstance(event, Done | Failed):
            return event
        _heed(event, keep)
        now = time.monotonic()
        if event is not None:
            heard_at = now
        if isinstance(event, Progress):
            failpoint("worker.first_progress")
            if event.phase in TRAINING:
                failpoint("worker.in_training")
            beat.tell(event)
            traces.enter(event)
        watch.check(now)
        if now - heard_at > stall_seconds:
            raise RunnerDied(f"runner said nothing for {stall_seconds:g} s")
        if closing.is_set():
            farewell.bid(now)
        elif now - started > SETTLED_SECONDS:
            settled()


def _heed(event: Event | None, keep: Callable[[Checkpoint], None]) -> None:
    """Do what news of checkpoints ask for."""
    if isinstance(event, Checkpoint):
        keep(event)
    elif isinstance(event, CheckpointIgnored):
        _log.warning("checkpoint_ignored", reason=event.reason)


class _Farewell:
    """Hears a runner; once the worker ends, lets it finish, or keep its state, or be killed."""

    def __init__(self, runner: Runner, drain_seconds: float) -> None:
        self._runner, self._drain_seconds = runner, drain_seconds
        self._begun_at: float | None = None
        self._has_asked = False

    def hear(self) -> Event | None:
        """Return the next event; raise Draining once the runner has stopped as it was asked to.

        One that stops unasked has died: nothing else counts how often it does.
        """
        try:
            event = self._runner.hear(TICK_SECONDS)
        except RunnerDied:
            if self._has_asked:
                raise Draining from None
            raise
        if isinstance(event, Interrupted):
            # Whoever ends the worker may have asked its runner, too.
            if self._begun_at is not None:
                raise Draining
            raise RunnerDied("runner stopped unasked", self._runner.stderr)
        return event

    def bid(self, now: float) -> None:
        """Do what is due at this time; raise Draining when all patience is at its end."""
        self._begun_at = self._begun_at or now
        waited = now - self._begun_at
        if waited >= self._drain_seconds + FAREWELL_SECONDS:
            raise Draining
        if waited >= self._drain_seconds and not self._has_asked:
            self._has_asked = True
            self._runner.interrupt()


def _wait_for_storage(claim: Claim, error: StorageAway | OSError) -> Ending:
    if isinstance(error, StorageAway):
        return partial(jobs.release, claim=claim, delay=STORAGE_AWAY_SECONDS)
    if error.errno not in parcels.NO_ROOM:
        raise error
    return _wait_for_room(claim)


def _wait_for_room(claim: Claim) -> Ending:
    _log.error("storage_full")
    return partial(jobs.release, claim=claim, delay=STORAGE_FULL_SECONDS, held_for="storage_full")


def _is_full(folder: Path) -> bool:
    """Whether there is as good as no room: a runner's word is not enough to try for ever."""
    if shutil.disk_usage(folder).free < LITTLE_BYTES:
        return True
    try:
        # A quota leaves the disk its room, and us none.
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(LITTLE_BYTES))
    except OSError as error:
        return error.errno in parcels.NO_ROOM
    return False


def _renew(claim: Claim, progress: Progress | None) -> Renewal:
    news = {} if progress is None else progress.model_dump(exclude={"event"})
    failpoint("lease.before_renewal")
    with transaction() as session:
        renewal = jobs.renew(session, claim, **news)
    failpoint("lease.after_renewal")
    return renewal
