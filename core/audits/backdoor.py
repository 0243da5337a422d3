"""Whether a known trigger still makes the model answer with the attacker's class.

Source: trojan cleanse of Jia et al., NeurIPS 2023, arXiv:2304.04934; Gu et al. 2017,
    arXiv:1708.06733.
Differs: records of the target class take no part in the success rate, and the share called target
    without the patch is stated beside it.
Reference: the parent. Success should come down to the share without the patch, accuracy should
    stay.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import nn

from ..backdoor import Attack, Trigger, attack
from ..errors import MissingEvidence
from ..findings import Finding
from ..intervals import Estimate
from ..problem import Evidence
from ._registry import AuditOptions, Need, audits


class BackdoorConfig(AuditOptions):
    """Success rate of a known trigger, and accuracy without it, before and after."""

    name: Literal["backdoor"] = "backdoor"
    trigger: Trigger = Field(description="The patch of the attacker, and the class it stands for.")

    routine: ClassVar[bool] = False
    needs: ClassVar[tuple[Need, ...]] = ("holdout", "images")
    source: ClassVar[str] = "Jia et al., NeurIPS 2023, arXiv:2304.04934"


@audits
def backdoor(evidence: Evidence, config: BackdoorConfig) -> list[Finding]:
    """Return the success rate, the share called target without the patch, and the accuracy.

    Raises:
        MissingEvidence: without images of other classes that were never trained on.
        InvalidInput: ``trigger_does_not_fit`` for these images or classes.
    """
    if evidence.need_holdout().images.ndim != 4:
        raise MissingEvidence("the records are features")
    before = _attack(evidence, config.trigger, evidence.before, "before")
    after = _attack(evidence, config.trigger, evidence.after, "after")
    return [
        _finding("attack_success", after.success, before.success, after.patched),
        _finding("target_share_without_trigger", after.without, before.without, after.patched),
        _finding("accuracy_without_trigger", after.accuracy, before.accuracy, after.records),
    ]


def _attack(evidence: Evidence, trigger: Trigger, model: nn.Module, which: str) -> Attack:
    return attack(
        model,
        evidence.need_holdout(),
        trigger,
        num_classes=evidence.num_classes,
        batch_size=evidence.batch_size,
        device=evidence.device,
        logits=evidence.scores[which]["holdout"],
    )


def _finding(measure: str, after: Estimate, before: Estimate, examples: int) -> Finding:
    return Finding(
        audit="backdoor",
        measure=measure,
        scope="holdout",
        value=after.value,
        unit="1",
        reference=before.value,
        reference_name="before",
        interval=(after.low, after.high),
        examples=examples,
    )
