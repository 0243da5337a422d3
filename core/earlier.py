"""Forget sets of earlier requests, looked at again: what was forgotten must not come back.

Training goes on after every request, and records that resemble forgotten ones can bring them back.
So each published rung tells how every earlier forget set fares under it, with gates that block
nothing: the present request is not to blame. The records serve for nothing else.

The parent has forgotten them already, so that its own distance from never-seen data is no measure
of what is allowed: the widest band is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .attack import WIDEST_BAND, population
from .data import Dataset, Preprocessing, Records
from .determinism import generator
from .errors import MissingEvidence
from .findings import Finding, Gate
from .forgetting import forget_accuracy, membership_auc
from .intervals import proportion
from .measures import accuracy, correct
from .problem import Evidence
from .scores import gather

MOST_RECORDS = 2000
"""Records of all earlier requests together, as long as each keeps ``FEWEST_EACH``."""

FEWEST_EACH = 20


@dataclass(frozen=True)
class Again:
    """How earlier forget sets fare under a candidate."""

    findings: list[Finding] = field(default_factory=list)
    gates: dict[str, list[Gate]] = field(default_factory=dict)
    """By request id; two-sided, so that poison, which a clean model does not know, fails below."""

    @property
    def came_back(self) -> list[str]:
        """Requests of which something is recognised better than never-seen records."""
        return [
            request
            for request, gates in self.gates.items()
            if any(
                gate.verdict == "failed" and gate.value is not None and gate.value > gate.band[1]
                for gate in gates
            )
        ]


def read(
    dataset: Dataset, earlier: Mapping[str, list[int]], preprocessing: Preprocessing
) -> dict[str, Records]:
    """Read a sample of every earlier forget set; the same records each time.

    Args:
        dataset: training data.
        earlier: request id -> rows that it had forgotten.
        preprocessing: of the model.
    """
    chosen = {request: _sample(rows, len(earlier)) for request, rows in earlier.items() if rows}
    if not chosen:
        return {}
    records = dataset.records(torch.cat([*chosen.values()]), preprocessing)
    ends = torch.tensor([0, *(len(rows) for rows in chosen.values())]).cumsum(0).tolist()
    return {
        request: records.take(torch.arange(ends[place], ends[place + 1]))
        for place, request in enumerate(chosen)
    }


def look_again(
    evidence: Evidence, earlier: Mapping[str, Records], *, batch_size: int, device: torch.device
) -> Again:
    """Return accuracy and membership AUC of every earlier forget set, parent beside candidate.

    Their scope is ``earlier/<request id>``. Without never-seen records of its classes the AUC of a
    request is inconclusive, and so are its gates.
    """
    if not earlier:
        return Again()
    whole = _join([*earlier.values()])
    before = gather(evidence.before, whole, batch_size=batch_size, device=device)
    after = gather(evidence.after, whole, batch_size=batch_size, device=device)
    found = Again()
    start = 0
    for request, records in earlier.items():
        part = slice(start, start + len(records))
        start += len(records)
        own = _own(evidence, records, before[part], after[part])
        scope = f"earlier/{request}"
        gates = [membership_auc(own, kappa=WIDEST_BAND), forget_accuracy(own, kappa=WIDEST_BAND)]
        found.gates[request] = [gate.model_copy(update={"role": "reported"}) for gate in gates]
        found.findings.extend([_accuracy(own, scope), _attack(own, scope, gates[0])])
    return found


def _sample(rows: list[int], num_requests: int) -> Tensor:
    limit = max(FEWEST_EACH, MOST_RECORDS // num_requests)
    found = torch.tensor(sorted(rows), dtype=torch.int64)
    order = torch.randperm(len(found), generator=generator(0))[:limit]
    return found[order.sort().values]


def _join(parts: list[Records]) -> Records:
    return replace(
        parts[0],
        images=torch.cat([part.images for part in parts]),
        labels=torch.cat([part.labels for part in parts]),
        rows=torch.cat([part.rows for part in parts]),
    )


def _own(evidence: Evidence, records: Records, before: Tensor, after: Tensor) -> Evidence:
    """Evidence in which an earlier forget set takes the place of the present one."""
    return replace(
        evidence,
        forget=records,
        selector="records",
        forget_classes=frozenset(),
        scores={
            "before": {**evidence.scores["before"], "forget": before},
            "after": {**evidence.scores["after"], "forget": after},
        },
    )


def _accuracy(own: Evidence, scope: str) -> Finding:
    right = correct(own.scores["after"]["forget"], own.forget.labels)
    share = proportion(int(right.sum()), len(right))
    return Finding(
        audit="accuracy",
        measure="accuracy",
        scope=scope,
        value=share.value,
        unit="1",
        reference=accuracy(own.scores["before"]["forget"], own.forget.labels),
        reference_name="before",
        interval=(share.low, share.high),
        examples=len(right),
    )


def _attack(own: Evidence, scope: str, gate: Gate) -> Finding:
    plain = Finding(
        audit="membership",
        measure="auc_margin",
        scope=scope,
        value=None,
        unit="1",
        examples=len(own.forget),
        verdict=gate.verdict,
        reason=gate.reason,
    )
    try:
        attack = population(own)
        after, before = attack.auc("after"), attack.auc("before")
    except MissingEvidence:
        return plain
    measured = {
        "value": after.value,
        "interval": (after.low, after.high),
        "reference": before.value,
        "reference_name": "before",
        "examples": len(attack.match.forget),
    }
    return plain.model_copy(update=measured)
