"""The last layer of a network, and what arrives at it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from .data import Records
from .errors import Infeasible, MissingEvidence
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


def penultimate(
    model: nn.Module, records: Records, *, batch_size: int, device: torch.device
) -> Tensor:
    """Return features[N, D] in float32 on the CPU: the classifier's input, in eval mode.

    Maps are averaged over their positions, for networks whose classifier is a convolution. Modes
    are restored.

    Raises:
        Infeasible: if the network has no classifier.
        MissingEvidence: if a feature is not finite.
    """
    found: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append(inputs[0].float().cpu())

    hook = classifier(model)[1].register_forward_pre_hook(keep)
    try:
        gather(model, records, batch_size=batch_size, device=device)
    finally:
        hook.remove()
    features = torch.cat(found).clone()
    if not bool(torch.isfinite(features).all()):
        raise MissingEvidence("some features are not finite")
    return features.flatten(2).mean(dim=2) if features.ndim > 2 else features
