"""Logits of whole sets of records, and never-seen records that match a forget set."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .data import Records
from .determinism import generator
from .device import full_precision
from .errors import MissingEvidence
from .intervals import effective_size
from .pieces import Pieces
from .smallmaps import dense_small_maps


@torch.inference_mode()
def gather(model: nn.Module, records: Records, *, batch_size: int, device: torch.device) -> Tensor:
    """Return logits[N, C] in float32 on the CPU: eval mode, no TF32, no autocast.

    Modes are restored. A batch for which the memory does not suffice is halved.
    """
    pieces = Pieces()

    def compute(x: Tensor) -> Tensor:
        logits: Tensor = model(x)
        return logits.float().cpu()

    modes = {module: module.training for module in model.modules()}
    model.to(device).eval()
    try:
        with full_precision(), dense_small_maps(model):
            batches = records.batches(batch_size, device)
            parts = [logits for x, _ in batches for logits in pieces.run(compute, x)]
    finally:
        for module, mode in modes.items():
            module.training = mode
    return torch.cat(parts).clone()


@dataclass(frozen=True)
class Match:
    """Never-seen records with the class mix of a forget set."""

    forget: Tensor
    """Positions of the forget records whose class occurs among the never-seen ones."""
    others: Tensor
    """Positions of the never-seen records whose class occurs in the forget set."""
    weights: Tensor
    """Weights of ``others``, sum 1; all alike where the class mixes are the same."""
    effective: float
    """Number of equally weighted records that would be as informative as ``others``."""


def match_classes(forget_labels: Tensor, other_labels: Tensor) -> Match:
    """Weight never-seen records so that their class histogram is the forget set's.

    Example:
        >>> match = match_classes(torch.tensor([0, 0, 1, 2]), torch.tensor([1, 0, 3]))
        >>> match.forget.tolist(), match.others.tolist()
        ([0, 1, 2], [0, 1])
        >>> [round(weight, 2) for weight in match.weights.tolist()]
        [0.33, 0.67]
    """
    size = 1 + max(
        int(labels.max()) if len(labels) else -1 for labels in (forget_labels, other_labels)
    )
    wanted = torch.bincount(forget_labels, minlength=size).double()
    found = torch.bincount(other_labels, minlength=size).double()
    shared = (wanted > 0) & (found > 0)
    others = shared[other_labels].nonzero().flatten()
    share = torch.where(shared, wanted, 0) / torch.where(shared, wanted, 0).sum().clamp(min=1)
    weights = (share / found.clamp(min=1))[other_labels[others]]
    return Match(
        forget=shared[forget_labels].nonzero().flatten(),
        others=others,
        weights=weights,
        effective=effective_size(weights) if len(weights) else 0.0,
    )


def draw_matched(
    wanted: Tensor, members: Tensor, others: Tensor, most: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Positions of equally many members and others per class, ``most`` of each or fewer.

    The class mix is that of ``wanted``; where the members have none of its classes, their own.
    Counts per class are rounded, which may add a few; where a class is due less than one record,
    those of the largest remainders get one, and there are at most ``most``.

    Args:
        wanted: labels that set the class mix.
        members: labels of one side.
        others: labels of the other side.
        most: of each.
        seed: of the draw.

    Raises:
        MissingEvidence: if members and others share no class.

    Example:
        >>> labels = torch.tensor([0, 0, 1, 1, 1])
        >>> members, others = draw_matched(torch.tensor([1]), labels, labels, 2, seed=0)
        >>> labels[members].tolist(), labels[others].tolist()
        ([1, 1], [1, 1])
    """
    size = 1 + int(torch.cat([wanted, members, others]).max())
    counts = [torch.bincount(labels, minlength=size) for labels in (wanted, members, others)]
    available = torch.minimum(counts[1], counts[2])
    mix = counts[0] if bool((counts[0] * available).any()) else counts[1]
    share = torch.where(available > 0, mix, 0).double()
    if not bool(share.any()):
        raise MissingEvidence("the records to compare have no class in common")
    share = share / share.sum()
    due = share * min(most, int(available.sum()))
    scarce = bool((due[share > 0] < 1).any())
    quotas = torch.minimum(_apportion(due) if scarce else due.round().long(), available)
    draw = generator(seed)
    return _draw(members, quotas, draw), _draw(others, quotas, draw)


def _apportion(due: Tensor) -> Tensor:
    """Whole numbers near these that add up to their sum; of equal remainders the first rises."""
    whole = due.floor()
    rising = (due - whole).sort(descending=True, stable=True).indices
    whole[rising[: round(float((due - whole).sum()))]] += 1
    return whole.long()


def _draw(labels: Tensor, quotas: Tensor, draw: torch.Generator) -> Tensor:
    order = torch.randperm(len(labels), generator=draw)
    parts = [
        order[labels[order] == label][: int(quotas[label])]
        for label in quotas.nonzero().flatten().tolist()
    ]
    return torch.cat(parts)


@dataclass(frozen=True)
class Change:
    """How far the parameters of a model are from those of its parent."""

    relative: float
    """Norm of the difference over the norm of the parent; NaN or infinite if that is not finite."""
    non_finite: int
    """Values, of parameters and buffers, that are NaN or infinite."""
    num_parameters: int


def change(before: nn.Module, after: nn.Module) -> Change:
    """Compare parameters, not buffers: recalibrated running statistics are no unlearning."""
    left, right = dict(before.named_parameters()), dict(after.named_parameters())
    distance = sum(
        float(
            (right[name].detach().double() - value.detach().to(right[name].device).double())
            .square()
            .sum()
        )
        for name, value in left.items()
    )
    norm = sum(float(value.detach().double().square().sum()) for value in left.values())
    broken = sum(
        int((~torch.isfinite(tensor)).sum())
        for tensor in after.state_dict().values()
        if tensor.is_floating_point()
    )
    relative = (distance / norm) ** 0.5 if norm > 0 else (float("inf") if distance > 0 else 0.0)
    return Change(relative, broken, sum(value.numel() for value in left.values()))
