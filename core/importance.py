"""How much each parameter matters for a set of records: four estimators, never interchangeable.

fisher_persample   mean over records of the squared gradient of the record's loss
fisher_batch       mean over batches of the squared gradient of the batch's mean loss
fisher_model       as fisher_persample, in expectation over the labels the model predicts
mas                mean over batches of |gradient of the batch's mean squared logit norm|

The model is in eval mode, nothing is augmented, sums over batches are kept in float64. Buffers
have no importance; a tied parameter counts once. ``fisher_model`` and ``mas`` need no labels.

Source: Foster et al. 2024, arXiv:2308.07707 (fisher_batch, as their code does it); Golatkar et al.
2020, arXiv:1911.04933 (fisher_model); Foster et al. 2024, arXiv:2402.19308 (mas).
Differs: ``fisher_batch`` on one class's records exceeds the per-record form by up to the batch
size, so a threshold made for one does not fit the other; a stored importance says what it is.
Cost: one forward and one backward pass over the records; ``fisher_model`` one backward per class.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import persample, weights
from .data import Records
from .determinism import generator
from .device import Precision, autocast, full_precision
from .errors import Diverged, InvalidInput, MissingEvidence
from .pieces import Pieces
from .report import Progress, no_progress
from .situation import Estimator
from .smallmaps import dense_small_maps

AGREEMENT = 0.99
"""Share of the selected weights on which bf16 must agree with float64 to be used."""

_CHECKED_RECORDS = 64
_CHECKED_FRACTION = 0.02


@dataclass(frozen=True, kw_only=True)
class Importance:
    """Importance of every parameter, and what it was made from."""

    values: dict[str, Tensor]
    """Parameter name -> float32 on the CPU, of the parameter's shape."""
    estimator: Estimator
    n: int
    """Records it was made from."""
    batch_size: int
    data: str
    """Digest of the records."""
    weights: str
    """Digest of the model it belongs to; it fits no other."""
    precision: Precision = "fp32"
    stale: int = 0
    """Requests since it was measured; their records have been subtracted."""

    def summary(self) -> dict[str, Any]:
        """What a later request must know of it, as JSON."""
        return {"estimator": self.estimator, "num_records": self.n, "stale": self.stale}


def estimate(
    model: nn.Module,
    records: Records,
    estimator: Estimator,
    *,
    batch_size: int,
    device: torch.device,
    seed: int | None = None,
    precision: Precision | Literal["auto"] = "fp32",
    progress: Progress = no_progress,
    check_time: Callable[[], None] | None = None,
) -> Importance:
    """Measure the importance of every parameter for these records.

    Args:
        model: left as it is, but for its memory layout and device.
        records: at least one.
        batch_size: records per batch; for ``fisher_batch`` and ``mas`` it changes the result, so
            only the others halve a batch for which the memory does not suffice.
        device: where to compute.
        seed: shuffles the records first; without it they are taken in order.
        precision: of forward and backward; ``auto`` takes bf16 where at least 99 % of the
            weights that a ratio would select agree with float64 on a sample, else fp32.
        progress: told after each batch.
        check_time: called before each batch; raises to stop.

    Raises:
        MissingEvidence: if there are no records.
        Diverged: if a value is not finite.
        torch.OutOfMemoryError: if a batch, or a sixteenth of one that may be halved, is too much.
    """
    if len(records) == 0:
        raise MissingEvidence("importance needs at least one record")
    modes = {module: module.training for module in model.modules()}
    try:
        model.to(device).eval()
        if records.images.ndim == 4:
            model.to(memory_format=torch.channels_last)
        if precision == "auto":
            precision = _choose_precision(model, records, estimator, device)
        run = _Run(model, estimator, device, precision)
        shuffled = None if seed is None else generator(seed)
        num_batches = -(-len(records) // batch_size)
        for index, (x, y) in enumerate(records.batches(batch_size, device, generator=shuffled)):
            if check_time is not None:
                check_time()
            run.add(x, y)
            progress((index + 1) / num_batches, {})
    finally:
        for module, mode in modes.items():
            module.training = mode
    return Importance(
        values=run.mean(),
        estimator=estimator,
        n=len(records),
        batch_size=batch_size,
        data=records.digest(),
        weights=weights.digest(model),
        precision=precision,
    )


def save(importance: Importance, path: Path) -> None:
    """Write values and origin to a safetensors file."""
    origin = {
        "estimator": importance.estimator,
        "n": importance.n,
        "batch_size": importance.batch_size,
        "data": importance.data,
        "weights": importance.weights,
        "precision": importance.precision,
        "stale": importance.stale,
    }
    metadata = {key: json.dumps(value) for key, value in origin.items()}
    tensors = {name: value.contiguous() for name, value in importance.values.items()}
    safetensors.torch.save_file(tensors, path, metadata=metadata)


def load(path: Path) -> Importance:
    """Read what ``save`` wrote.

    Raises:
        InvalidInput: ``importance_invalid`` if the file is something else.
    """
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            metadata = {k: json.loads(v) for k, v in (file.metadata() or {}).items()}
            values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata.get("estimator") not in get_args(Estimator):
            raise InvalidInput("importance_invalid", "the file names no known estimator")
        return Importance(values=values, **metadata)
    except (safetensors.SafetensorError, TypeError, ValueError):
        raise InvalidInput("importance_invalid", "the file is no stored importance") from None


class _Run:
    """Accounts in float64, one per parameter, and the way a batch is added to them."""

    def __init__(
        self, model: nn.Module, estimator: Estimator, device: torch.device, precision: Precision
    ) -> None:
        self.model = model
        self.estimator = estimator
        self.device, self.precision = device, precision
        self.parameters = {n: p for n, p in model.named_parameters() if p.is_floating_point()}
        self.accounts = {
            id(p): torch.zeros_like(p, dtype=torch.float64) for p in self.parameters.values()
        }
        self.weight = 0
        self.closed_form = persample.has_closed_form(model)
        self.pieces = Pieces()

    def add(self, x: Tensor, y: Tensor) -> None:
        with full_precision():
            if self.estimator in ("fisher_persample", "fisher_model"):
                self._add_records(x, y)
            else:
                self._add_batch(x, y)

    def mean(self) -> dict[str, Tensor]:
        found = {}
        for name, parameter in self.parameters.items():
            value = (self.accounts[id(parameter)] / self.weight).float().cpu()
            if not bool(torch.isfinite(value).all()):
                raise Diverged(f"the importance of {name} is not finite")
            found[name] = value.contiguous()
        return found

    def _add_records(self, x: Tensor, y: Tensor) -> None:
        losses = _label_loss if self.estimator == "fisher_persample" else _model_losses
        left = [(x, y)]
        if self.closed_form:
            add = partial(self._add_closed_form, losses)
            left = [piece for piece in self.pieces.run(add, x, y) if piece is not None]
        for xs, ys in left:
            persample.add_general(
                self.model, xs, ys, losses=losses, add=self._credit, pieces=self.pieces
            )
        self.weight += len(x)

    def _add_closed_form(
        self, losses: persample.Losses, x: Tensor, y: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        """Add records by the closed forms; return them if these do not cover the model."""
        try:
            persample.add_closed_form(
                self._forward, self.model, x, y, losses=losses, add=self._credit
            )
        except persample.Unsupported:
            self.closed_form = False  # nothing was added; known only once the model has run
            return x, y
        return None

    def _add_batch(self, x: Tensor, y: Tensor) -> None:
        self.weight += 1
        wanted = list(self.parameters.values())
        needed = [p.requires_grad for p in wanted]
        try:
            for p in wanted:
                p.requires_grad_(True)
            with dense_small_maps(self.model):
                logits = self._forward(self.model, x)
            if self.estimator == "mas":
                loss = logits.square().sum(1).mean()
            else:
                loss = F.cross_entropy(logits, y)
            gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
        finally:
            for p, need in zip(wanted, needed, strict=True):
                p.requires_grad_(need)
        for p, gradient in zip(wanted, gradients, strict=True):
            if gradient is not None:
                positive = gradient.abs() if self.estimator == "mas" else gradient.square()
                self._credit(p, positive, persample.ALL)

    def _forward(self, model: nn.Module, x: Tensor) -> Tensor:
        with autocast(self.device, self.precision):
            logits: Tensor = model(x)
        return logits.float() if self.precision == "bf16" else logits

    def _credit(self, parameter: Tensor, values: Tensor, where: persample.Where) -> None:
        self.accounts[id(parameter)][where].add_(values)


def _label_loss(logits_NC: Tensor, labels_N: Tensor) -> list[Tensor]:
    return [F.cross_entropy(logits_NC, labels_N, reduction="none")]


def _model_losses(logits_NC: Tensor, _: Tensor) -> list[Tensor]:
    """Log-probability of each class times the root of its probability, so that squares add up."""
    log_p = logits_NC.log_softmax(dim=1)
    return list((log_p.detach().div(2).exp() * log_p).unbind(dim=1))


def _choose_precision(
    model: nn.Module, records: Records, estimator: Estimator, device: torch.device
) -> Precision:
    """Compare bf16 with float64 on the weights that the ratio of two small sets would select."""
    per_record = estimator in ("fisher_persample", "fisher_model")
    if len(records) < 2 * _CHECKED_RECORDS or (per_record and not persample.has_closed_form(model)):
        return "fp32"
    exact = weights.frozen_copy(model).double()
    order = torch.randperm(len(records), generator=generator(0))[: 2 * _CHECKED_RECORDS]
    ratios = []
    for candidate, precision, dtype in (
        (model, "bf16", torch.float32),
        (exact, "fp32", torch.float64),
    ):
        halves = []
        for half in order.split(_CHECKED_RECORDS):
            run = _Run(candidate, estimator, device, "bf16" if precision == "bf16" else "fp32")
            for x, y in records.take(half).batches(_CHECKED_RECORDS, device):
                run.add(x.to(dtype), y)
            halves.append(torch.cat([a.flatten() for a in run.accounts.values()]))
        ratios.append(torch.nan_to_num(halves[0] / halves[1], nan=0.0))
    return "bf16" if agreement(ratios[0], ratios[1], _CHECKED_FRACTION) >= AGREEMENT else "fp32"


def agreement(first: Tensor, second: Tensor, fraction: float) -> float:
    """Share of the largest ``fraction`` of ``second`` that is also among that of ``first``.

    Example:
        >>> agreement(torch.tensor([3.0, 2.0, 1.0, 0.0]), torch.tensor([3.0, 0.0, 2.0, 1.0]), 0.5)
        0.5
    """
    count = max(1, round(fraction * len(first)))
    chosen = torch.zeros(len(first), dtype=torch.bool, device=first.device)
    chosen[first.topk(count).indices] = True
    return float(chosen[second.topk(count).indices].double().mean())
