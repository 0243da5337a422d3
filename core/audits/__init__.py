"""Audits: evidence and a configuration in, findings out. One file per audit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..errors import MissingEvidence
from ..findings import Finding
from ..masks import of_pruned
from ..problem import Evidence
from ..registry import Config, discover
from ._registry import AuditOptions, audits, lacking

discover(__name__, list(__path__))

if TYPE_CHECKING:
    AuditConfig = Config
else:
    AuditConfig = audits.union()

__all__ = ["AuditConfig", "AuditOptions", "audits", "run_all", "run_chosen"]

DENSE_ORACLE = "the parent was pruned and the oracle was not, which is part of what is between them"


def run_all(evidence: Evidence) -> list[Finding]:
    """Run every routine audit with its defaults.

    Missing evidence becomes an inconclusive finding that says what is missing.
    """
    configs: list[Any] = [
        entry.config.model_validate({"name": entry.name})
        for entry in audits
        if issubclass(entry.config, AuditOptions) and entry.config.routine
    ]
    return run_chosen(evidence, configs)


def run_chosen(evidence: Evidence, configs: Iterable[AuditOptions]) -> list[Finding]:
    """Run these audits, routine or not, in this order.

    Missing evidence becomes an inconclusive finding that says what is missing.
    """
    findings: list[Finding] = []
    for config in configs:
        if reason := lacking(evidence, config):
            findings.append(_inconclusive(config.name, reason))
            continue
        try:
            found = audits[config.name].run(evidence, config)
        except MissingEvidence as error:
            found = [_inconclusive(config.name, str(error))]
        if "oracle" in config.needs and _only_oracle_is_dense(evidence):
            found = [f.model_copy(update={"reason": f.reason or DENSE_ORACLE}) for f in found]
        findings += found
    return findings


def _only_oracle_is_dense(evidence: Evidence) -> bool:
    """Whether parent and oracle differ by a pruning, too, of which an oracle's recipe knows not."""
    return bool(of_pruned(evidence.before)) and not of_pruned(evidence.need_oracle())


def _inconclusive(audit: str, reason: str) -> Finding:
    return Finding(
        audit=audit,
        measure=audit,
        scope="forget",
        value=None,
        unit="1",
        examples=0,
        verdict="inconclusive",
        reason=reason,
    )
