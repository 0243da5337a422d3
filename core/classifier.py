"""The last layer of a network, and what arrives at it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from .data import Records
from .errors import Infeasible, MissingEvidence
from .networks.ensemble import Ensemble
from .scores import gather

LAYERS = (nn.Linear, _ConvNd)


def classifier(model: nn.Module) -> tuple[str, nn.Module]:
    """Return the name and the module of the layer that makes the logits.

    It is the last linear or convolution layer in order of registration, whatever its width: by its
    shape any layer with as many outputs as there are classes would be taken for it.

    Raises:
        Infeasible: if the network has neither linear nor convolution layers.
    """
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, LAYERS)]
    if not layers:
        raise Infeasible("the network has no linear or convolution layer")
    return layers[-1]


def parts(model: nn.Module) -> list[nn.Module]:
    """Return what makes logits of its own: the members of an ensemble, else the model itself."""
    return [*model.members] if isinstance(model, Ensemble) else [model]


def penultimate(
    model: nn.Module, records: Records, *, batch_size: int, device: torch.device
) -> Tensor:
    """Return features[N, D] in float32 on the CPU: the classifier's input, in eval mode.

    Maps are averaged over their positions, for networks whose classifier is a convolution, and
    sequences over their tokens. Features of an ensemble are those of its members side by side.
    Modes are restored.

    Raises:
        Infeasible: if the network has no classifier.
        MissingEvidence: if a feature is not finite.
    """
    heads = [classifier(part)[1] for part in parts(model)]
    found: dict[nn.Module, list[Tensor]] = {head: [] for head in heads}

    def keep(head: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found[head].append(inputs[0].float().cpu())

    hooks = [head.register_forward_pre_hook(keep) for head in heads]
    try:
        gather(model, records, batch_size=batch_size, device=device)
    finally:
        for hook in hooks:
            hook.remove()
    features = torch.cat([_flat(head, torch.cat(found[head])) for head in heads], dim=1)
    if not bool(torch.isfinite(features).all()):
        raise MissingEvidence("some features are not finite")
    return features


def _flat(head: nn.Module, features: Tensor) -> Tensor:
    """Average a head's input over positions: [N, D, ...], or [N, ..., D] where it is linear."""
    if features.ndim == 2:
        return features
    if isinstance(head, nn.Linear):
        return features.flatten(1, -2).mean(dim=1)
    return features.flatten(2).mean(dim=2)
