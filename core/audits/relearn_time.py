"""How fast the forget records are learned again, against records that were never seen.

Copies of the candidate are tuned with the recipe's optimizer at a fraction of its rate, once on
forget records and once on as many never-seen records of the same classes, until the probability
of their labels is on average within alpha percent of the parent's on the forget records. Hidden
knowledge shows as fewer steps. Repeated with other draws, which tell how much the times of
never-seen records vary; the interval of the ratio is as wide as that. The interval of the
anamnesis index covers the draws, not how the oracle happened to be trained. Where a draw it is
compared with was given up, how much less the ratio is stays open: its interval starts at zero.

Source: anamnesis index of Chundawat et al., IEEE TIFS 2023, arXiv:2201.05629; relearn time of
    Golatkar et al. 2020, arXiv:1911.04933.
Differs: the mean probability of the label in place of accuracy, which is too coarse for a few
    records; between two steps by interpolation. The never-seen records are the oracle-free floor.
    No augmentation, a constant rate.
Reference: never-seen records; 1 is perfect, below it something is remembered, far above it the
    model is damaged. With an oracle also the anamnesis index, steps over the oracle's steps.
"""

from __future__ import annotations

import copy
import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from scipy import special
from torch import Tensor, nn

from ..data import Records
from ..errors import Diverged, InvalidInput, MissingEvidence
from ..findings import Finding, Verdict
from ..intervals import Estimate
from ..measures import cross_entropy
from ..problem import Evidence
from ..recipe import Constant, Recipe
from ..scores import draw_matched, gather
from ..training import fit
from ..verdicts import LEVEL, verdict_of
from ._registry import AuditOptions, Need, audits


class RelearnTimeConfig(AuditOptions):
    """Steps to learn forget records again, over steps to learn as many never-seen ones."""

    name: Literal["relearn_time"] = "relearn_time"
    records: int = Field(100, ge=2, le=10_000, description="Records per side, at most.")
    repeats: int = Field(5, ge=2, le=50, description="Draws of records, each learned once.")
    rate: float = Field(0.1, gt=0, le=1, description="Share of the recipe's peak learning rate.")
    alpha: float = Field(
        5.0, gt=0, lt=100, description="Percent below the parent's mean probability that will do."
    )
    most_steps: int = Field(300, ge=1, le=100_000, description="Steps after which to give up.")
    smallest_ratio: float = Field(
        0.8, gt=0, le=1, description="Ratio that the lower end of the interval must reach."
    )

    routine: ClassVar[bool] = False
    needs: ClassVar[tuple[Need, ...]] = ("holdout", "recipe", "before")
    source: ClassVar[str] = "Chundawat et al., IEEE TIFS 2023, arXiv:2201.05629"


MOST_OF_POOL = 0.7
"""Share of the never-seen records that a draw may take; beyond it draws are hardly different."""


class _Reached(Exception):
    """The records are known well enough; training stops."""


@audits
def relearn_time(evidence: Evidence, config: RelearnTimeConfig) -> list[Finding]:
    """Return the ratio of relearning times with its interval, and the anamnesis index.

    Raises:
        MissingEvidence: without recipe or never-seen records of the forgotten classes.
    """
    holdout = evidence.need_holdout()
    labels = evidence.forget.labels
    target = known(evidence.scores["before"]["forget"], labels) * (1 - config.alpha / 100)
    times: dict[str, list[float]] = {"forget": [], "holdout": [], "oracle": []}
    count = 0
    for repeat in range(config.repeats):
        first, second = draw_matched(
            labels, labels, holdout.labels, config.records, evidence.seed ^ repeat
        )
        sides = {"forget": evidence.forget.take(first), "holdout": holdout.take(second)}
        count = len(first)
        for side, records in sides.items():
            times[side].append(
                steps_to_learn(evidence.after, records, target, evidence, config, repeat)
            )
        if evidence.oracles:
            times["oracle"].append(
                steps_to_learn(
                    evidence.oracles[0], sides["forget"], target, evidence, config, repeat
                )
            )
    logs = {
        side: (torch.tensor(t).clamp(max=config.most_steps) + 1).log() for side, t in times.items()
    }
    findings = []
    for measure, side in (("relearn_ratio", "holdout"), ("anamnesis_index", "oracle")):
        if side == "oracle" and not evidence.oracles:
            continue
        reason = _undecided(times["forget"], times[side], config)
        pool = int(torch.isin(holdout.labels, labels.unique()).sum())
        if side == "holdout" and count > MOST_OF_POOL * pool:
            reason = (
                reason or f"{pool} never-seen records are too few to draw {count} of them apart"
            )
        if reason is not None:
            findings.append(_untold(measure, count, reason))
            continue
        if side == "holdout":
            ratio = _against_unseen(logs["forget"], logs[side], len(labels), pool, count)
        else:
            ratio = _paired(logs["forget"] - logs[side])
        findings.append(_ratio(measure, ratio, times["forget"], times[side], count, config))
    return findings


def steps_to_learn(
    model: nn.Module,
    records: Records,
    target: float,
    evidence: Evidence,
    config: RelearnTimeConfig,
    repeat: int,
) -> float:
    """Steps until the records are known as well as the target says, or infinity.

    The model is copied.

    Raises:
        MissingEvidence: without a recipe, if the training diverged, or with a single record where
            there is batch norm.
    """
    recipe = evidence.recipe
    if recipe is None:
        raise MissingEvidence("no recipe was registered with the model")
    student = copy.deepcopy(model).requires_grad_(True)
    levels: list[float] = []

    def look(_step: int = 0, _rate: float = 0.0) -> None:
        logits = gather(student, records, batch_size=evidence.batch_size, device=evidence.device)
        levels.append(known(logits, records.labels))
        if levels[-1] >= target:
            raise _Reached

    batch = min(recipe.batch_size, len(records))
    try:
        look()
        fit(
            student,
            records,
            _short(recipe, batch),
            seed=evidence.seed ^ repeat,
            device=evidence.device,
            epochs=math.ceil(config.most_steps / max(len(records) // batch, 1)),
            lr=recipe.optimizer.lr * config.rate,
            after_step=look,
            check_time=evidence.check_time,
        )
    except _Reached:
        if len(levels) == 1:
            return 0.0
        return len(levels) - 2 + (target - levels[-2]) / (levels[-1] - levels[-2])
    except Diverged as error:
        raise MissingEvidence(f"relearning diverged: {error}") from error
    except InvalidInput as error:
        raise MissingEvidence(f"the records can't be learned again: {error}") from error
    return math.inf


def _short(recipe: Recipe, batch: int) -> Recipe:
    changes = {"batch_size": batch, "schedule": Constant(), "augment": (), "label_smoothing": 0.0}
    return recipe.model_copy(update=changes)


def known(logits_NC: Tensor, labels_N: Tensor) -> float:
    """Mean probability of the label.

    Example:
        >>> known(torch.zeros(2, 4), torch.tensor([0, 3]))
        0.25
    """
    return float((-cross_entropy(logits_NC, labels_N)).exp().mean())


def _ratio(
    measure: str,
    ratio: Estimate,
    own: list[float],
    other: list[float],
    count: int,
    config: RelearnTimeConfig,
) -> Finding:
    means = [sum(min(t, config.most_steps) for t in times) / len(times) for times in (own, other)]
    reached = [sum(t <= config.most_steps for t in times) for times in (own, other)]
    interval = (ratio.low if reached[1] == len(other) else 0.0, ratio.high)
    verdict: Verdict | None = None
    if measure == "relearn_ratio":
        verdict = verdict_of(interval, (config.smallest_ratio, math.inf))
    name = "never-seen" if measure == "relearn_ratio" else "oracle"
    return Finding(
        audit="relearn_time",
        measure=measure,
        scope="forget",
        value=ratio.value,
        unit="1",
        reference=1.0,
        reference_name=name,
        interval=interval,
        examples=count,
        verdict=verdict,
        reason=f"{means[0]:.1f} steps against {means[1]:.1f} for the {name} side; {reached[0]} and "
        f"{reached[1]} of {len(own)} reached the goal, the rest count {config.most_steps}",
    )


def _undecided(own: list[float], other: list[float], config: RelearnTimeConfig) -> str | None:
    if min(own + other) > config.most_steps:
        return f"nothing was learned again in {config.most_steps} steps"
    if not any(own + other):
        return "both sides are known well enough without learning"
    return None


def _untold(measure: str, count: int, reason: str) -> Finding:
    return Finding(
        audit="relearn_time",
        measure=measure,
        scope="forget",
        value=None,
        unit="1",
        examples=count,
        verdict="inconclusive",
        reason=reason,
    )


def _against_unseen(own: Tensor, other: Tensor, num_forget: int, pool: int, count: int) -> Estimate:
    """Ratio with the interval in which as many never-seen records would lie by chance.

    The draws of never-seen records tell how much times vary from sample to sample. The forget set
    is few samples, or one: drawing it again and again adds no certainty about it.
    """
    n = len(other)
    variance = float(other.var()) / (1 - count / pool)
    samples = max(1.0, min(num_forget / count, len(own)))
    unseen = max(1.0, min(pool / count, n))
    return _student(
        float(own.mean() - other.mean()), math.sqrt(variance * (1 / samples + 1 / unseen)), n
    )


def _paired(logs: Tensor) -> Estimate:
    return _student(float(logs.mean()), float(logs.std()) / math.sqrt(len(logs)), len(logs))


def _student(mean: float, error: float, count: int) -> Estimate:
    half = float(special.stdtrit(count - 1, 0.5 + LEVEL / 2)) * error
    return Estimate(math.exp(mean), math.exp(mean - half), math.exp(mean + half))
