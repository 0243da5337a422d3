"""After an upload: check that weights, network and data fit; measure what requests will need."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from . import determinism, networks, roles, stored
from . import importance as files
from .data import Preprocessing, Records
from .device import choose
from .errors import InvalidInput
from .findings import Finding
from .group import is_memory
from .intervals import Estimate, auc_interval, proportion
from .ladder import IMPORTANCE_FILE, load_finite
from .measures import accuracy_per_class, correct, cross_entropy, margin
from .recipe import Recipe
from .report import Report, no_report
from .rungs import RETAIN_SAMPLE
from .scores import gather, match_classes


def prepare(
    *,
    out: Path,
    weights: Path,
    architecture: dict[str, Any],
    preprocessing: dict[str, Any],
    dataset: Path | None,
    holdout: Path | None,
    recipe: dict[str, Any] | None,
    excluded: list[int],
    split_key: str,
    seed: int,
    batch_size: int,
    importance: Path | None = None,
    device: str = "auto",
    report: Report = no_report,
) -> dict[str, Any]:
    """Measure the baseline of a version and the importance of its weights.

    Importance is made per record over a seeded shuffle of everything the version was trained on
    and has not been asked to forget.

    Args:
        out: folder for ``importance.safetensors``.
        weights: of the version.
        architecture: name and options of the network.
        preprocessing: how stored values become network input.
        dataset: canonical file of the training data; without it there is no importance.
        holdout: canonical file of never-seen data; where it is ``dataset``, its holdout split.
        recipe: how the version was trained; read, so that a bad one is refused now.
        excluded: training rows that were forgotten before; they take no part.
        split_key: halves the holdout into tuning and judging.
        seed: of shuffle and samples.
        batch_size: records per batch.
        importance: of the full set, measured where the data is; without ``dataset`` only.
        device: where to compute.
        report: told about progress.

    Returns:
        number of parameters, baseline findings as JSON, file name of the importance and its
        summary, or None.

    Raises:
        InvalidInput: ``model_non_finite``; ``dataset_values_invalid`` if labels or values don't fit
            the network; ``importance_mismatch`` or ``importance_invalid``; what loading weights and
            reading data raise.
    """
    report("resolving", 0.0, None, None, {})
    network = networks.parse(architecture)
    if recipe is not None:
        Recipe.model_validate(recipe)
    model = networks.build(network, seed)
    load_finite(weights, model)
    given = None
    if dataset is None and importance is not None:
        given = files.load(importance)
        stored.check(given, model)
    known = roles.read(
        dataset=dataset,
        holdout=holdout,
        preprocessing=Preprocessing.model_validate(preprocessing),
        excluded=excluded,
        split_key=split_key,
    )
    num_classes = networks.num_classes(network)
    for records in (known.train, known.tuning, known.judging):
        _check_labels(records, num_classes)
    chosen = choose(device)
    determinism.seed_everything(seed)
    findings = _baseline(model, known, seed=seed, batch_size=batch_size, device=chosen)
    report("auditing", 1.0, 0.0, None, {})
    if known.train is not None:
        given = _measure(model, known.train, seed, batch_size, chosen, report)
    if given is not None:
        files.save(given, out / IMPORTANCE_FILE)
    report("publishing", 1.0, 0.0, None, {})
    return {
        "num_parameters": networks.num_parameters(model),
        "findings": [finding.model_dump(mode="json") for finding in findings],
        "importance": None if given is None else IMPORTANCE_FILE,
        "importance_summary": None if given is None else given.summary(),
    }


def _check_labels(records: Records | None, num_classes: int) -> None:
    if records is not None and int(records.labels.max()) >= num_classes:
        raise InvalidInput(
            "dataset_values_invalid",
            f"labels go up to {int(records.labels.max())}, the network has {num_classes} classes",
        )


def _measure(
    model: nn.Module,
    train: Records,
    seed: int,
    batch_size: int,
    device: torch.device,
    report: Report,
) -> files.Importance:
    start = time.monotonic()

    def progress(fraction: float, metrics: dict[str, float]) -> None:
        left = (time.monotonic() - start) / fraction * (1 - fraction)
        report("unlearning", fraction, left, None, metrics)

    return files.estimate(
        model,
        train,
        "fisher_persample",
        batch_size=batch_size,
        device=device,
        seed=seed,
        progress=progress,
    )


def _baseline(
    model: nn.Module, known: roles.Roles, *, seed: int, batch_size: int, device: torch.device
) -> list[Finding]:
    """Accuracy and loss on training and judging records, and an attack between the two."""
    train = roles.sample(known.train, RETAIN_SAMPLE, seed)
    parts = {"train": train, "holdout": known.judging}
    logits = {
        role: _fitting(model, records, batch_size, device)
        for role, records in parts.items()
        if records is not None
    }
    findings: list[Finding] = []
    for role, records in parts.items():
        if records is not None:
            findings += _described(role, records, logits[role])
    if train is not None and known.judging is not None:
        findings += _attack(train, known.judging, logits)
    return findings


def _fitting(
    model: nn.Module, records: Records, batch_size: int, device: torch.device
) -> torch.Tensor:
    """Compute logits; a shape that the network can't take is the data's fault, not ours."""
    try:
        gather(model, records.take([0]), batch_size=1, device=device)
    except (RuntimeError, ValueError, AssertionError, IndexError) as error:
        if is_memory(error):
            raise
        raise InvalidInput(
            "dataset_values_invalid",
            f"the network can't take records of shape {list(records.images.shape[1:])}",
        ) from None
    return gather(model, records, batch_size=batch_size, device=device)


def _described(role: str, records: Records, logits: torch.Tensor) -> list[Finding]:
    right = correct(logits, records.labels)
    whole = proportion(int(right.sum()), len(records))
    classes = accuracy_per_class(logits, records.labels)
    loss = float(cross_entropy(logits, records.labels).mean())
    return [
        _finding("accuracy", "accuracy", role, whole, len(records)),
        _finding("accuracy", "loss", role, loss, len(records), unit="nats"),
        *(
            _finding(
                "accuracy",
                "accuracy",
                f"{role}/class={label}",
                estimate,
                int((records.labels == label).sum()),
            )
            for label, estimate in classes.items()
        ),
    ]


def _attack(train: Records, judging: Records, logits: dict[str, torch.Tensor]) -> list[Finding]:
    match = match_classes(train.labels, judging.labels)
    if len(match.others) == 0:
        return []
    members = margin(logits["train"], train.labels)[match.forget]
    others = margin(logits["holdout"], judging.labels)[match.others]
    if bool(torch.isnan(torch.cat([members, others])).any()):
        raise InvalidInput("model_non_finite", "the model's scores are not numbers on its data")
    auc = auc_interval(members, others, match.weights)
    return [_finding("membership", "auc_margin", "train", auc, len(members))]


def _finding(
    audit: Literal["accuracy", "membership"],
    measure: str,
    scope: str,
    value: Estimate | float,
    examples: int,
    unit: str = "1",
) -> Finding:
    number = value.value if isinstance(value, Estimate) else value
    finite = torch.isfinite(torch.tensor(number)).item()
    return Finding(
        audit=audit,
        measure=measure,
        scope=scope,
        value=number if finite else None,
        unit=unit,
        interval=(value.low, value.high) if isinstance(value, Estimate) else None,
        examples=examples,
        verdict=None if finite else "inconclusive",
        reason=None if finite else "the value is not finite",
    )
