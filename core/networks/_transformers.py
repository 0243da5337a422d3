"""Image classifiers of transformers, from their config alone.

No file is opened and nothing is downloaded: a config is data for a class of the package, remote
code and pretrained backbones have no way in, and a key that the class does not know is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import Any, ClassVar

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from pydantic import Field, model_validator
from torch import Tensor, nn
from transformers.core_model_loading import revert_weight_conversion
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as CLASSES,
)

from ..registry import Config, Entry
from ._extras import REFUSALS, extras, refusing
from ._fields import Classes
from ._options import Options, bounded

_PREFIX = "transformers/"
TYPES = (
    *("beit", "bit", "convnext", "convnextv2", "cvt", "data2vec-vision", "deit", "dinov2"),
    *("dinov2_with_registers", "efficientnet", "focalnet", "hgnet_v2", "hiera", "ijepa", "levit"),
    *("mobilenet_v1", "mobilenet_v2", "mobilevit", "mobilevitv2", "poolformer", "pp_lcnet", "pvt"),
    *("pvt_v2", "regnet", "resnet", "segformer", "swiftformer", "swin", "swinv2", "textnet"),
    *("vit", "vit_msn"),
)
"""Model types that look at nothing but an image, and answer with logits."""

PROVENANCE = frozenset({"_name_or_path", "transformers_version"})
"""Keys of a config.json that say where it is from; they are not kept."""
COMMON = frozenset(
    {field.name for field in fields(transformers.PretrainedConfig)} | {"num_labels", "torch_dtype"}
)
"""What all configs of the package have, and what is no choice here."""


class TransformersConfig(Config):
    """Image classifier of transformers, as its config.json says."""

    name: str
    num_classes: Classes = Field(description="Classes, i.e. width of the last layer.")
    config: Options = Field(
        default_factory=dict,
        description="What config.json holds; what is left out is the package's default. "
        "What is no choice, such as `id2label`, `architectures` or `dtype`, must fit the rest.",
    )
    source: ClassVar[str] = "Wolf et al., EMNLP 2020, arXiv:1910.03771"

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, raw: Any) -> Any:
        """Keep the choices, with the package's default of the rest; the rest must fit them."""
        if not isinstance(raw, dict) or not isinstance(raw.get("config", {}), dict):
            return raw  # told by the fields
        kind, num_classes = str(raw.get("name")).removeprefix(_PREFIX), raw.get("num_classes")
        if type(num_classes) is not int or num_classes < 1:
            return raw
        given = raw.get("config", {})
        own = _own_fields(kind)
        chosen = bounded({key: value for key, value in given.items() if key in own})
        try:
            made = CONFIG_MAPPING[kind](**chosen, num_labels=num_classes)
        except (StrictDataclassError, *REFUSALS) as error:
            said = " ".join(str(error).split())[:200]
            raise ValueError(f"config: {said}") from None
        for key in given.keys() - own - PROVENANCE:
            if not _fits(key, given[key], made):
                raise ValueError(f"config: {str(key)[:64]} is not known, or not as given here")
        whole = {name: getattr(made, name) for name in sorted(own)}
        return {**raw, "config": json.loads(json.dumps(whole))}


def _fits(key: str, value: Any, made: Any) -> bool:
    """Whether what is no choice says what is so anyway."""
    if value is None:
        return key in COMMON
    if key in ("id2label", "label2id"):
        return isinstance(value, dict) and len(value) == made.num_labels
    if key in ("dtype", "torch_dtype"):
        return bool(value == "float32")
    if key == "architectures":
        return bool(value == [_class_name(made.model_type)])
    if key == "problem_type":
        return bool(value == "single_label_classification")
    return hasattr(made, key) and bool(getattr(made, key) == value)


@cache
def _own_fields(kind: str) -> frozenset[str]:
    """Return what the config class of this type adds to what all have."""
    own = frozenset(field.name for field in fields(CONFIG_MAPPING[kind]))
    return own - COMMON


def _class_name(kind: str) -> str:
    named: str | tuple[str, ...] = CLASSES[kind]
    return named if isinstance(named, str) else named[0]


@cache
def _answering_with_logits(kind: str) -> Any:
    """Return the class of the package, but that it takes images and returns logits.

    Its state has the names that ``save_pretrained`` writes and ``from_pretrained`` reads; inside,
    the package has others for some types.
    """
    base: Any = getattr(transformers, _class_name(kind))

    class Classifier(base):  # type: ignore[misc]  # known at run time only
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = super().forward(pixel_values=x, return_dict=True).logits
            return logits

        def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
            state: dict[str, Any] = super().state_dict(*args, **kwargs)
            names = _stored_names(self, tuple(state))
            return {names[name]: tensor for name, tensor in state.items()}

        def load_state_dict(self, state: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
            names = _stored_names(self, tuple(super().state_dict()))
            inside = {stored: name for name, stored in names.items()}
            renamed = {inside.get(name, name): tensor for name, tensor in state.items()}
            return super().load_state_dict(renamed, *args, **kwargs)

    Classifier.__name__ = base.__name__
    return Classifier


def _stored_names(model: Any, names: tuple[str, ...]) -> dict[str, str]:
    """Return name inside -> name in a file; the same where tensors would have to be recombined."""
    probes = {name: torch.tensor(n, device="cpu") for n, name in enumerate(names)}
    try:
        stored = revert_weight_conversion(model, probes)
        found = {names[int(number)]: name for name, number in stored.items()}
    except REFUSALS:  # a number cannot be split
        found = {}
    return found if found.keys() == set(names) else {name: name for name in names}


def _build(config: TransformersConfig) -> nn.Module:
    kind = config.name.removeprefix(_PREFIX)
    with refusing():
        whole = CONFIG_MAPPING[kind](**config.config, num_labels=config.num_classes)
        # Eager: the fused kernel has no batching rule for per-sample gradients on the CPU.
        model: nn.Module = _answering_with_logits(kind)._from_config(
            whole, attn_implementation="eager", dtype=torch.float32
        )
    return model


for _kind in TYPES:
    _summary = f"transformers' {_class_name(_kind)}."
    extras.add(Entry(_PREFIX + _kind, _summary, TransformersConfig, _build))
