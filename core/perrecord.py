"""Per-record attacks: how many forget records look more like members than never-seen ones do.

A threshold is put where ``rate`` of the never-seen records lie beyond it. Of n records that the
model does not remember about ``rate * n`` lie beyond it too, whatever the model; how many do is
counted, with an exact interval. A population attack compares two distributions and needs hundreds
of records; a count beyond a rare threshold tells something with a handful, as long as the parent
remembered them clearly. How much it tells is stated: the probability that the parent's own share
would be found (``detection``), and that records nobody remembers would be cleared (``power``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy import special
from torch import Tensor

from .attack import Population, population
from .errors import MissingEvidence
from .findings import Finding, Verdict
from .intervals import Estimate, auc_interval, proportion
from .measures import margin
from .problem import Evidence
from .verdicts import ENOUGH_POWER, LEVEL, verdict_of

RecordScores = Callable[[Literal["before", "after"]], tuple[Tensor, Tensor]]
"""Model to scores of all forget and all holdout records; higher means "was trained on"."""


@dataclass(frozen=True)
class Tail:
    """Forget records beyond the threshold that ``rate`` of the never-seen ones lie beyond."""

    count: int
    examples: int
    rate: float
    """Share of the never-seen records beyond the threshold; ties make it smaller than asked."""

    @property
    def share(self) -> Estimate:
        """Share of the forget records, with its Clopper-Pearson interval."""
        return proportion(self.count, self.examples, level=LEVEL)


def tail(members: Tensor, others: Tensor, weights: Tensor, rate: float) -> Tail:
    """Count the members above the score that at most ``rate`` of the others exceed.

    Example:
        >>> found = tail(torch.tensor([98.5, 200.0]), torch.arange(100.0), torch.ones(100), 0.05)
        >>> found.count, round(found.rate, 2)
        (2, 0.05)
    """
    ordered, order = others.double().sort(descending=True)
    share = weights.double()[order].cumsum(0) / weights.double().sum()
    # the others above ordered[i] are those before it, so the share before it decides
    allowed = int((share <= rate + 1e-9).sum())
    threshold = ordered[min(allowed, len(ordered) - 1)]
    beyond = float(weights.double()[others.double() > threshold].sum() / weights.double().sum())
    return Tail(int((members.double() > threshold).sum()), len(members), beyond)


def clearing_power(examples: int, rate: float, limit: float) -> float:
    """Probability that the interval of records nobody remembers ends below ``limit``.

    Example:
        >>> clearing_power(1, 0.05, 0.5), round(clearing_power(10, 0.05, 0.5), 2)
        (0.0, 0.91)
    """
    counts = np.arange(examples)
    highest = special.betaincinv(counts + 1, examples - counts, 0.5 + LEVEL / 2)
    cleared = int(np.count_nonzero(highest <= limit))
    return float(special.bdtr(cleared - 1, examples, rate)) if cleared else 0.0


def detection_power(examples: int, rate: float, share: float) -> float:
    """Probability that remembered records, ``share`` of them beyond, are told from unseen ones.

    Told means a one-sided exact test at 5 %.

    Example:
        >>> round(detection_power(1, 0.05, 0.9), 2), round(detection_power(1, 0.06, 0.9), 2)
        (0.9, 0.0)
    """
    at_least = np.asarray(special.bdtrc(np.arange(examples), examples, rate))
    needed = 1 + int(np.count_nonzero(at_least > 0.05 + 1e-9))
    return float(special.bdtrc(needed - 1, examples, share))


def allowed_share(rate: float, parent: float) -> float:
    """Half-way from what never-seen records give to the share that the parent remembers.

    Example:
        >>> allowed_share(0.25, 0.75), allowed_share(0.25, 0.0)
        (0.5, 0.25)
    """
    return rate + max(parent - rate, 0.0) / 2


def margins(evidence: Evidence, model: str) -> tuple[Tensor, Tensor]:
    """Margins of the forget and the holdout records by one model.

    Raises:
        MissingEvidence: if one is not a number.
    """
    logits, holdout = evidence.scores[model], evidence.need_holdout()
    own = margin(logits["forget"], evidence.forget.labels)
    others = margin(logits["holdout"], holdout.labels)
    if bool(torch.isnan(own).any() or torch.isnan(others).any()):
        raise MissingEvidence("some margins are not a number")
    return own, others


def judge(evidence: Evidence, audit: str, score: RecordScores, *, rate: float) -> list[Finding]:
    """Findings of a per-record attack: AUC, both tails, worst record, what it could tell.

    Raises:
        MissingEvidence: without comparable never-seen records, or too few of them for ``rate``.
    """
    attack = population(evidence)
    if attack.match.effective * rate < 1 - 1e-9:
        raise MissingEvidence(
            f"{len(attack.match.others)} never-seen records cannot show a share of {rate:g}"
        )
    before, after = (_matched(attack, score(model)) for model in ("before", "after"))
    weights, count = attack.match.weights, len(attack.match.forget)
    auc = auc_interval(*after, weights, level=LEVEL)
    worst = _worst(*after, weights)
    return [
        Finding(
            audit=audit,
            measure="auc",
            scope="forget",
            value=auc.value,
            unit="1",
            reference=auc_interval(*before, weights, level=LEVEL).value,
            reference_name="before",
            interval=(auc.low, auc.high),
            examples=count,
        ),
        _share(audit, "exceeding_share", before, after, attack, rate),
        _share(audit, "below_share", _flipped(before), _flipped(after), attack, rate, before),
        Finding(
            audit=audit,
            measure="worst_record_p_value",
            scope="forget",
            value=worst,
            unit="1",
            reference=_worst(*before, weights),
            reference_name="before",
            examples=count,
            reason="share of never-seen records that score as high as the highest forget record, "
            f"times the {count} records looked at",
        ),
        *_told(audit, before, attack, rate),
    ]


def _share(
    audit: str,
    measure: str,
    before: tuple[Tensor, Tensor],
    after: tuple[Tensor, Tensor],
    attack: Population,
    rate: float,
    remembered: tuple[Tensor, Tensor] | None = None,
) -> Finding:
    """Share beyond a threshold; the band ends half-way to what the parent remembers."""
    weights = attack.match.weights
    found, theirs = (tail(*scores, weights, rate) for scores in (after, before))
    parent = theirs if remembered is None else tail(*remembered, weights, rate)
    limit = allowed_share(found.rate, parent.share.value)
    interval = (found.share.low, found.share.high)
    power = clearing_power(found.examples, found.rate, limit)
    verdict: Verdict = "inconclusive"
    if found.share.low > limit or power >= ENOUGH_POWER:
        verdict = attack.judged(verdict_of(interval, (0.0, limit)))
    return Finding(
        audit=audit,
        measure=measure,
        scope="forget",
        value=found.share.value,
        unit="1",
        reference=found.rate,
        reference_name="never-seen",
        interval=interval,
        examples=found.examples,
        verdict=verdict,
        reason=f"{found.count} of {found.examples} forget records lie beyond the score that "
        f"{100 * found.rate:.1f} % of never-seen records lie beyond (parent: {theirs.count}); at "
        f"most {100 * limit:.1f} % are allowed, half-way to what the parent remembers; records "
        f"that nobody remembers would pass with probability {power:.2f}"
        + (f"; {attack.left_out}" if attack.left_out else ""),
    )


def _told(
    audit: str, before: tuple[Tensor, Tensor], attack: Population, rate: float
) -> list[Finding]:
    parent = tail(*before, attack.match.weights, rate)
    n = parent.examples
    power = clearing_power(n, parent.rate, allowed_share(parent.rate, parent.share.value))
    values = {
        "exceeding_share_before": (
            parent.share.value,
            f"share that the parent remembers; {100 * parent.rate:.1f} % of never-seen records "
            "lie beyond the same score",
        ),
        "power": (
            0.0 if attack.unmatched else power,
            f"probability that {n} records nobody remembers would pass",
        ),
        "detection": (
            detection_power(n, parent.rate, parent.share.value),
            f"probability that {n} records remembered as by the parent, "
            f"{100 * parent.share.value:.0f} % of them beyond the threshold, would be found",
        ),
    }
    return [
        Finding(
            audit=audit,
            measure=measure,
            scope="forget",
            value=value,
            unit="1",
            examples=n,
            reason=reason,
        )
        for measure, (value, reason) in values.items()
    ]


def _worst(members: Tensor, others: Tensor, weights: Tensor) -> float:
    """p-value of the highest member among the others, corrected for the number of members.

    The member itself is counted among the others, so that no finite sample gives zero.
    """
    reached = float(weights[others >= members.max()].sum() / weights.sum())
    m = len(others)
    return min(1.0, len(members) * (reached * m + 1) / (m + 1))


def _matched(attack: Population, scores: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return scores[0][attack.match.forget], scores[1][attack.match.others]


def _flipped(scores: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return -scores[0], -scores[1]
