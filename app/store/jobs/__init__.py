"""Verbs over jobs, in the order of a job's life."""

from ..endings import LeaseLost
from .claiming import claim, claim_next, renew
from .claims import Claim, Renewal
from .finishing import (
    cancelled,
    fail,
    finish_convert,
    finish_ingest,
    finish_prepare,
    keep_checkpoint,
    note_sandbox,
    release,
)
from .gathering import finish_audit, finish_bank, finish_oracle
from .indexing import CHUNK, add_to_index, clear_index
from .publishing import exhaust, finish_without_influence, publish
from .queueing import due, needs_of, stamp_dispatched
from .reading import cancel, get, rungs, waiting_on
from .recovery import free_all, sweep
from .retrying import may_retry, retry

__all__ = [
    "CHUNK",
    "Claim",
    "LeaseLost",
    "Renewal",
    "add_to_index",
    "cancel",
    "cancelled",
    "claim",
    "claim_next",
    "clear_index",
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
    "keep_checkpoint",
    "may_retry",
    "needs_of",
    "note_sandbox",
    "publish",
    "release",
    "renew",
    "retry",
    "rungs",
    "stamp_dispatched",
    "sweep",
    "waiting_on",
]
