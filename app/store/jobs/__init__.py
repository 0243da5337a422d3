"""Verbs over jobs, in the order of a job's life."""

from ..endings import LeaseLost
from .claiming import claim, renew
from .claims import Claim, Renewal
from .finishing import (
    cancelled,
    fail,
    finish_convert,
    finish_ingest,
    finish_prepare,
    note_sandbox,
    release,
)
from .gathering import finish_audit, finish_bank, finish_oracle
from .publishing import exhaust, finish_without_influence, publish
from .queueing import due, stamp_dispatched
from .reading import cancel, get, rungs, waiting_on
from .recovery import free_all, sweep

__all__ = [
    "Claim",
    "LeaseLost",
    "Renewal",
    "cancel",
    "cancelled",
    "claim",
    "due",
    "exhaust",
    "fail",
    "finish_audit",
    "finish_bank",
    "finish_convert",
    "finish_ingest",
    "finish_oracle",
    "finish_prepare",
    "finish_without_influence",
    "free_all",
    "get",
    "note_sandbox",
    "publish",
    "release",
    "renew",
    "rungs",
    "stamp_dispatched",
    "sweep",
    "waiting_on",
]
