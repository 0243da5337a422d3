"""Residual knowledge: whether changed copies of forget records are still recognised.

Source: residual knowledge, arXiv:2601.22359 (2026): copies in a ball around a record.
Differs: held against changed copies of never-seen records of the same classes, so it needs no
    oracle; flips and JPEG beside noise. Where an oracle was trained its ratio stands beside.
Reference: the parent's difference between forget and never-seen records; 0 is perfect, above it
    the forget records are still known, below it they stand out as worse than unseen. Ratio: 1.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from ..data import Records
from ..determinism import generator
from ..errors import MissingEvidence
from ..findings import Finding
from ..intervals import proportion_difference
from ..measures import correct
from ..problem import Evidence
from ..scores import draw_matched, gather
from ..verdicts import LEVEL
from ._registry import AuditOptions, Need, audits


class PerturbationConfig(AuditOptions):
    """Recognition of flipped, noisy and recompressed forget records against never-seen ones."""

    name: Literal["perturbation"] = "perturbation"
    radius: float = Field(
        0.03,
        gt=0,
        le=1,
        description="Standard deviation of the noise: share of the range of pixels, or of the "
        "standard deviation of each feature.",
    )
    copies: int = Field(4, ge=1, le=100, description="Noisy copies per record.")
    quality: int = Field(50, ge=1, le=95, description="Quality of JPEG.")
    most_records: int = Field(1000, ge=1, le=20_000, description="Records per side, at most.")

    routine: ClassVar[bool] = False
    needs: ClassVar[tuple[Need, ...]] = ("holdout", "before")
    source: ClassVar[str] = "residual knowledge, 2026, arXiv:2601.22359"


@audits
def perturbation(evidence: Evidence, config: PerturbationConfig) -> list[Finding]:
    """Return, per kind of change, accuracy on changed forget minus changed never-seen records.

    Raises:
        MissingEvidence: without never-seen records of the forgotten classes, or with one alone
            where the records are features.
    """
    holdout = evidence.need_holdout()
    labels = evidence.forget.labels
    first, second = draw_matched(labels, labels, holdout.labels, config.most_records, evidence.seed)
    sides = evidence.forget.take(first), holdout.take(second)
    findings = []
    for kind, change in _changes(evidence, config).items():
        copies = [change(side) for side in sides]

        def known(model: nn.Module, copies: list[list[Records]] = copies) -> list[Tensor]:
            return [_known(evidence, model, side) for side in copies]

        findings += _findings(evidence, kind, known)
    return findings


def _findings(
    evidence: Evidence, kind: str, known: Callable[[nn.Module], list[Tensor]]
) -> list[Finding]:
    after, before = known(evidence.after), known(evidence.before)
    shares = [float(side.mean()) for side in after]
    count = len(after[0])
    apart = proportion_difference(shares[0], count, shares[1], count, level=LEVEL)
    found = [
        Finding(
            audit="perturbation",
            measure=f"residual_{kind}",
            scope="forget",
            value=apart.value,
            unit="1",
            reference=float(before[0].mean() - before[1].mean()),
            reference_name="before",
            interval=(apart.low, apart.high),
            examples=count,
        )
    ]
    if evidence.oracles:
        ideal = float(known(evidence.oracles[0])[0].mean())
        found.append(
            Finding(
                audit="perturbation",
                measure=f"residual_ratio_{kind}",
                scope="forget",
                value=shares[0] / ideal if ideal > 0 else None,
                unit="1",
                reference=1.0,
                reference_name="oracle",
                examples=count,
                verdict=None if ideal > 0 else "inconclusive",
                reason=None if ideal > 0 else "the oracle recognises none of the copies",
            )
        )
    return found


def _known(evidence: Evidence, model: nn.Module, copies: list[Records]) -> Tensor:
    """Share of each record's copies that are recognised: float64[N]."""
    hits = []
    for records in copies:
        evidence.check_time()
        logits = gather(model, records, batch_size=evidence.batch_size, device=evidence.device)
        hits.append(correct(logits, records.labels).double())
    return torch.stack(hits).mean(dim=0)


def _changes(
    evidence: Evidence, config: PerturbationConfig
) -> dict[str, Callable[[Records], list[Records]]]:
    """Kinds of change that suit the records, each giving one or more copies."""
    is_image = evidence.forget.images.ndim == 4
    if not is_image and len(evidence.need_holdout()) < 2:
        raise MissingEvidence("the spread of features takes at least two never-seen records")
    spread = (
        evidence.need_holdout().images.float().std(dim=0) if not is_image else torch.tensor(255.0)
    )

    def noise(records: Records) -> list[Records]:
        draw = generator(evidence.seed)
        return [noisy(records, config.radius * spread, draw) for _ in range(config.copies)]

    if not is_image:
        return {"noise": noise}
    return {
        "flip": lambda records: [replace(records, images=records.images.flip(-1))],
        "noise": noise,
        "jpeg": lambda records: [recompressed(records, config.quality)],
    }


def noisy(records: Records, spread: Tensor, draw: torch.Generator) -> Records:
    """Add Gaussian noise of this spread; pixels are rounded and kept in their range."""
    values = records.images.float()
    values = values + spread * torch.randn(values.shape, generator=draw)
    if records.images.dtype == torch.uint8:
        values = values.round().clamp(0, 255)
    return replace(records, images=values.to(records.images.dtype))


def recompressed(records: Records, quality: int) -> Records:
    """Write every image as JPEG and read it again."""
    out = torch.empty_like(records.images)
    for index, image in enumerate(records.images):
        buffer = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).squeeze(-1).numpy()).save(
            buffer, "JPEG", quality=quality
        )
        pixels = np.array(Image.open(buffer))
        out[index] = torch.from_numpy(pixels).reshape(*image.shape[1:], -1).permute(2, 0, 1)
    return replace(records, images=out)
