"""What becomes of batch norm's running statistics after an approximate unlearner."""

from __future__ import annotations

from torch import nn

from .. import batchnorm
from ..problem import Problem

RECALIBRATION_RECORDS = 2048


def settle(problem: Problem, model: nn.Module, limit: int = RECALIBRATION_RECORDS) -> bool:
    """Recalibrate on retained records where the policy says so; return whether that was done.

    ``frozen`` and ``tracked`` leave the statistics as the unlearner left them. With fewer than two
    retained records there is nothing to recalibrate on.
    """
    wanted = problem.bn_policy == "recalibrate" and batchnorm.has_batchnorm(model)
    if not wanted or problem.retain is None or len(problem.retain) < 2:
        return False
    batchnorm.recalibrate(model, problem.retain, problem.batch_size, problem.device, limit)
    return True


def settle_at_last(problem: Problem, model: nn.Module) -> None:
    """Settle what is handed back; where that was wanted and not possible, the trials say so."""
    done = settle(problem, model)
    if not done and problem.bn_policy == "recalibrate" and batchnorm.has_batchnorm(model):
        problem.tried.append({"batch_norm": "running statistics are the parent's"})
