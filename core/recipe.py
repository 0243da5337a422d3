"""How a version was trained: typed, bounded, complete enough to train it again."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from .data import Augmentation
from .device import Precision
from .registry import misfit, require_name


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class _Choice(_Part):
    model_config = ConfigDict(json_schema_extra=require_name)


class SGD(_Choice):
    """Stochastic gradient descent."""

    name: Literal["sgd"] = "sgd"
    lr: float = Field(gt=0, le=100, description="Learning rate; the peak of the schedule.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum, constant over training.")
    nesterov: bool = Field(False, description="Nesterov momentum; needs momentum above zero.")
    weight_decay: float = Field(0.0, ge=0, le=1, description="L2 penalty on all parameters.")

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise misfit(self, "nesterov", "nesterov needs a momentum above zero")
        return self


class AdamW(_Choice):
    """Adam with decoupled weight decay."""

    name: Literal["adamw"] = "adamw"
    lr: float = Field(gt=0, le=10, description="Learning rate; the peak of the schedule.")
    beta1: float = Field(0.9, ge=0, lt=1, description="Decay of the first moment.")
    beta2: float = Field(0.999, ge=0, lt=1, description="Decay of the second moment.")
    weight_decay: float = Field(0.01, ge=0, le=1, description="Decoupled decay per unit of rate.")


class Constant(_Choice):
    """The same rate throughout."""

    name: Literal["constant"] = "constant"


class MultiStep(_Choice):
    """A rate that drops at the start of given epochs."""

    name: Literal["multistep"] = "multistep"
    milestones: tuple[Annotated[int, Field(ge=1, le=10_000)], ...] = Field(
        min_length=1, max_length=32, description="Epochs, counted from 0, that start with a drop."
    )
    gamma: float = Field(0.1, gt=0, le=1, description="Factor of each drop.")


class Cosine(_Choice):
    """A linear warm-up, then half a cosine down to zero."""

    name: Literal["cosine"] = "cosine"
    warmup: float = Field(0.0, ge=0, lt=1, description="Fraction of all steps that warm up.")


class OneCycle(_Choice):
    """Half a cosine up to the peak, half a cosine down to almost nothing."""

    name: Literal["one_cycle"] = "one_cycle"
    warmup: float = Field(0.3, gt=0, lt=1, description="Fraction of all steps on the way up.")
    div_factor: float = Field(25.0, ge=1, le=1e6, description="Peak rate over first rate.")
    final_div_factor: float = Field(1e4, ge=1, le=1e9, description="First rate over last rate.")


Optimizer = Annotated[SGD | AdamW, Field(discriminator="name")]
Schedule = Annotated[Constant | MultiStep | Cosine | OneCycle, Field(discriminator="name")]


class Recipe(_Part):
    """How a version was trained, complete enough to train it again."""

    epochs: int = Field(ge=1, le=10_000, description="Passes over the training records.")
    batch_size: int = Field(128, ge=1, le=65_536, description="Records per step.")
    optimizer: Optimizer = Field(description="Optimizer with its options.")
    schedule: Schedule = Field(Constant(), description="Learning rate over the steps.")
    augment: tuple[Augmentation, ...] = Field(
        (), max_length=2, description="Random changes of training images: crop, flip."
    )
    precision: Precision = Field("fp32", description="Precision of matrix products.")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Share spread over all classes.")
    seed: int = Field(0, ge=-(2**63), lt=2**63, description="Seed of the first training.")


def rate_factor(schedule: Schedule, step: int, num_steps: int, epochs: int) -> float:
    """Share of the peak rate at ``step`` (from 0) of ``num_steps`` steps in ``epochs`` epochs.

    One-cycle reaches its last rate on the last step, as ``torch.optim.lr_scheduler.OneCycleLR``
    does; the momentum is not cycled.
    """
    done = step / num_steps
    match schedule:
        case Constant():
            return 1.0
        case MultiStep(milestones=milestones, gamma=gamma):
            epoch = step * epochs // num_steps
            return gamma ** sum(epoch >= milestone for milestone in milestones)
        case Cosine(warmup=warmup):
            if done < warmup:
                return (step + 1) / (warmup * num_steps + 1)
            return _cosine(1.0, 0.0, (done - warmup) / (1 - warmup))
        case OneCycle():
            return _one_cycle(schedule, step, num_steps) if num_steps > 1 else 1.0


def _one_cycle(schedule: OneCycle, step: int, num_steps: int) -> float:
    peak = schedule.warmup * num_steps - 1
    first = 1 / schedule.div_factor
    if 0 < peak >= step:
        return _cosine(first, 1.0, step / peak)
    last = first / schedule.final_div_factor
    return _cosine(1.0, last, (step - peak) / (num_steps - 1 - peak))


def _cosine(start: float, end: float, fraction: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * fraction))
