"""What decides which unlearners suit a request. Free of torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Policy = Literal["fast", "standard", "strict", "exact"]
Selector = Literal["class", "records"]
Purpose = Literal["erasure", "poison_removal"]
Modality = Literal["image", "features"]
Estimator = Literal["fisher_persample", "fisher_batch", "fisher_model", "mas"]
"""Ways to measure importance (``core.importance``)."""

SMALL_REQUEST = 200
"""Below this many records a population attack has no power, so the exact rung comes first."""

LARGE_SHARE = 0.25
"""Above this share of the training records unlearning saves little over retraining."""

MANY_EARLIER = 5
"""From this many approximate requests in a row on, one-shot edits are not repeated."""

TRANSFORMERS = (
    *("aimv2", "beit", "cait", "coat_", "crossvit", "data2vec", "davit", "deepseek_vit", "deit"),
    *("dinov2", "eva", "flexivit", "gcvit", "gemma4_vit", "hiera", "ijepa", "maxvit", "mvitv2"),
    *("naflexvit", "nest", "pit_", "pvt", "qwen3_vit", "sam2_hiera", "samvit", "segformer"),
    *("swin", "tnt", "twins", "vit", "volo", "xcit"),
)
"""How the names of networks begin, behind that of a package, whose blocks are attention."""

LAYER_NORM = (
    *("caformer", "coatnext", "convformer", "convit", "convnext", "edgenext", "focalnet"),
    *("gmixer", "gmlp", "mambaout", "maxxvit", "mixer", "poolformer", "sequencer"),
)
"""The same of networks built like transformers from other blocks: layer norm, no batch norm."""


class Situation(BaseModel):
    """A request, the model it is about, and what is at hand for it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: Policy = "standard"
    selector: Selector
    num_forget: int = Field(ge=0)
    num_train: int | None = Field(None, ge=1)
    """Training records before the request, forgotten ones left out; None where not known."""
    has_recipe: bool
    has_holdout: bool
    has_retain: bool = True
    """Whether training records that stay are at hand."""
    has_importance: bool = False
    """Whether the importance of the full set is stored."""
    estimator: Estimator | None = None
    """Of the stored importance; None where that is not known."""
    has_batchnorm: bool | None = None
    modality: Modality | None = None
    architecture: str | None = None
    """Name of the network."""
    epochs: int | None = Field(None, ge=1)
    """Of the recipe: what retraining costs."""
    purpose: Purpose = "erasure"
    time_budget_seconds: float | None = Field(None, gt=0)
    seconds_per_pass: float | None = Field(None, gt=0)
    """Measured: one forward and backward pass over the training records."""
    members: int | None = Field(None, ge=1)
    """Of an ensemble trained by shards."""
    num_earlier: int = Field(0, ge=0)
    """Approximate requests since the model was last trained from scratch."""
    budget_spent: str | None = None
    """Which cap of the deletion budget is spent, in words; retraining then comes first."""
    unlearner: dict[str, Any] | None = None
    """One unlearner config given by the caller; it is then the only rung."""

    @property
    def share(self) -> float:
        """Share of the training records that is to be forgotten; 0 where that is not known."""
        return 0.0 if self.num_train is None else min(1.0, self.num_forget / self.num_train)

    @property
    def is_small(self) -> bool:
        """Whether the request is below what a population attack can judge."""
        return self.num_forget < SMALL_REQUEST

    @property
    def is_large(self) -> bool:
        """Whether so much is to be forgotten that retraining is the better way."""
        return self.share > LARGE_SHARE

    @property
    def is_transformer(self) -> bool:
        """Whether the network is one of attention layers with layer norm."""
        return self._network.startswith(TRANSFORMERS)

    @property
    def has_layernorm(self) -> bool:
        """Whether the network is a transformer, or built like one of other layers."""
        alike = not self.has_batchnorm and self._network.startswith(LAYER_NORM)
        return self.is_transformer or alike

    @property
    def _network(self) -> str:
        """Name of the network without that of its package."""
        return (self.architecture or "").rpartition("/")[2]
