"""Heartbeats: renewed, lost, cancelled, and through a database outage."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from sqlalchemy import exc

from worker.lease import CancelRequested, Heartbeat, LeaseLost, insist
from worker.protocol import Progress


@dataclass(frozen=True)
class Answer:
    alive: bool = True
    cancel: bool = False


class Ledger:
    """Answers renewals in order, the last one for ever."""

    def __init__(self, *answers: Answer | Exception) -> None:
        self.answers = list(answers)
        self.told: list[Progress | None] = []

    def renew(self, progress: Progress | None) -> Answer:
        self.told.append(progress)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def outage() -> exc.OperationalError:
    return exc.OperationalError("update", {}, Exception("gone"))


def eventually(true: Callable[[], bool], seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if true():
            return True
        time.sleep(0.01)
    return False


def found(beat: Heartbeat) -> type[Exception] | None:
    try:
        beat.check()
    except (LeaseLost, CancelRequested, ZeroDivisionError) as error:
        return type(error)
    return None


def test_a_claim_is_renewed_until_the_block_ends() -> None:
    ledger = Ledger(Answer())
    with Heartbeat(ledger.renew, 0.01) as beat:
        assert eventually(lambda: len(ledger.told) > 5)
        beat.check()
    count = len(ledger.told)
    time.sleep(0.05)
    assert len(ledger.told) == count


def test_progress_reaches_the_ledger_before_the_next_regular_beat() -> None:
    ledger = Ledger(Answer())
    news = Progress(event="progress", phase="unlearning", progress=0.5)
    with Heartbeat(ledger.renew, 60.0) as beat:
        beat.tell(news)
        assert eventually(lambda: news in ledger.told)


@pytest.mark.parametrize(
    ("answer", "error"),
    [(Answer(alive=False), LeaseLost), (Answer(cancel=True), CancelRequested)],
)
def test_what_the_ledger_says_reaches_the_job(answer: Answer, error: type[Exception]) -> None:
    with Heartbeat(Ledger(Answer(), answer).renew, 0.01) as beat:
        assert eventually(lambda: found(beat) is error)


def test_an_outage_is_outlasted() -> None:
    standby = exc.InternalError("update", {}, Exception("read-only transaction"))
    ledger = Ledger(Answer(), outage(), standby, outage(), Answer())
    with Heartbeat(ledger.renew, 0.01) as beat:
        assert eventually(lambda: len(ledger.told) > 5)
        beat.check()


def test_an_outage_beyond_the_grace_loses_the_lease() -> None:
    with Heartbeat(Ledger(outage()).renew, 0.01, grace=0.05) as beat:
        assert eventually(lambda: found(beat) is LeaseLost)


def test_a_bug_in_the_heartbeat_is_not_swallowed() -> None:
    with Heartbeat(Ledger(ZeroDivisionError()).renew, 0.01) as beat:
        assert eventually(lambda: found(beat) is ZeroDivisionError)


def test_the_block_can_end_during_an_outage() -> None:
    ledger = Ledger(outage())
    with Heartbeat(ledger.renew, 0.01):
        assert eventually(lambda: len(ledger.told) > 1)
    assert "heartbeat" not in {thread.name for thread in threading.enumerate()}


def test_insisting_repeats_only_outages() -> None:
    answers: list[Exception] = [outage(), outage()]

    def act() -> str:
        if answers:
            raise answers.pop()
        return "done"

    assert insist(act, pause=0.0) == "done"
    answers.append(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        insist(act, pause=0.0)


def test_insisting_stops_when_told() -> None:
    stop = threading.Event()
    stop.set()

    def act() -> str:
        raise outage()

    assert insist(act, stop) is None
