"""Reference models, kept as what they say: the margin of every training and judging record.

Each model is trained once on half of the training records, with the recipe of the audited model.
Halves come in complementary pairs, so every record is unseen by exactly half of the models. The
models themselves are thrown away: a margin gives probability and loss of the label, which is all
that a per-record attack reads. An audit with a bank runs no model at all; it needs the audited
model's logits, which every rung has.

A bank is derived from the records: where some are forgotten, it is deleted and made again with
them ``excluded``.

Source: Carlini et al. 2022, arXiv:2112.03570 (paired halves); Zarifzadeh et al. 2024,
arXiv:2312.03262 (few reference models).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from . import weights
from .checkpoints import Keeper, once
from .data import Records
from .determinism import generator
from .errors import InvalidInput, MissingEvidence
from .findings import Processes
from .measures import margin
from .recipe import Recipe
from .report import Progress, no_progress
from .scores import gather
from .team import Team
from .training import fit


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a bank was made from; another bank is made where any of it differs."""

    parent: str
    """Digest of the weights that will be audited."""
    train: str
    """Digest of the training records, without the excluded ones."""
    judging: str
    recipe: str
    """Digest of the recipe's options."""
    seed: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Bank:
    """Margins by reference models. k models, N training and M judging records."""

    made: Made
    train_rows: Tensor
    """int64[N], ascending."""
    judging_rows: Tensor
    """int64[M], ascending."""
    trained_on: Tensor
    """bool[k, N]."""
    train_margins: Tensor
    """float32[k, N]."""
    judging_margins: Tensor
    """float32[k, M]."""

    def __len__(self) -> int:
        return len(self.trained_on)

    def references(self, forget: Tensor, holdout: Tensor) -> References:
        """What the models say about these row numbers, in this order.

        Of never-seen records, which no model was trained on, a seeded half of each pair counts:
        as many models as for a forget record, so that both sides carry the same noise.

        Raises:
            MissingEvidence: if the bank has no whole pair of models, or lacks a record.
        """
        pairs = len(self) // 2
        if pairs == 0:
            raise MissingEvidence("there are no two reference models yet")
        at_forget = _positions(self.train_rows, forget)
        at_holdout = _positions(self.judging_rows, holdout)
        first = torch.rand(pairs, len(holdout), generator=generator(self.made.seed)) < 0.5
        return References(
            forget=self.train_margins[: 2 * pairs, at_forget],
            forget_out=~self.trained_on[: 2 * pairs, at_forget],
            holdout=self.judging_margins[: 2 * pairs, at_holdout],
            holdout_out=torch.stack([first, ~first], dim=1).flatten(0, 1),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class References:
    """Margins by k reference models for n forget and m holdout records, with who counts as out."""

    forget: Tensor
    """float32[k, n]."""
    forget_out: Tensor
    """bool[k, n]: the model was not trained on the record."""
    holdout: Tensor
    """float32[k, m]."""
    holdout_out: Tensor
    """bool[k, m]: as many models per record as in ``forget_out``."""

    def of_forget(self, at: Tensor) -> References:
        """Return the same for the forget records at these positions."""
        return replace(self, forget=self.forget[:, at], forget_out=self.forget_out[:, at])


def train_bank(
    path: Path,
    *,
    fresh: Callable[[int], nn.Module],
    train: Records,
    judging: Records,
    recipe: Recipe,
    parent: str,
    seed: int,
    batch_size: int,
    device: torch.device,
    num_models: int = 4,
    excluded: Iterable[int] = (),
    progress: Progress = no_progress,
    check_time: Callable[[], None] | None = None,
    team: Team | None = None,
    keeper: Keeper | None = None,
) -> Bank:
    """Train reference models until the file at ``path`` holds as many as asked for.

    The file is replaced after every model, so a run that was stopped goes on with the next one,
    and with a ``keeper`` in the midst of one, also where the file is gone. A file that was made
    from anything else is overwritten.

    Args:
        path: safetensors file of margins and membership.
        fresh: builds the network from a seed.
        train: training records of the audited model.
        judging: never-seen records that gates judge on.
        recipe: of the audited model.
        parent: digest of its weights.
        seed: of halves, initialisation and order.
        batch_size: records per forward pass.
        device: where to train.
        num_models: even, because halves come in pairs.
        excluded: training rows that were forgotten; no model sees them, and none are kept.
        progress: told about every training.
        check_time: called before each step; raises to stop.
        team: as for ``fit``; of models that were trained before an interruption, too, it is told
            how many processes did.
        keeper: keeps what the models that are done say and the state of the one at work, and has
            what an interrupted run left.

    Raises:
        Interrupted: if ``keeper`` was asked to end, and has the state.
        ValueError: if ``num_models`` is odd or below two.
        MissingEvidence: with fewer than four training records.
        Diverged, InvalidInput: as ``fit``.
    """
    if num_models < 2 or num_models % 2:
        raise ValueError("reference models come in pairs")
    gone = torch.tensor(sorted(set(excluded)), dtype=torch.int64)
    train = _ordered(train.take(~torch.isin(train.rows, gone)))
    judging = _ordered(judging)
    if len(train) < 4:
        raise MissingEvidence(f"{len(train)} training records are too few for reference models")
    made = Made(
        parent=parent,
        train=train.digest(),
        judging=judging.digest(),
        recipe=hashlib.sha256(recipe.model_dump_json().encode()).hexdigest(),
        seed=seed,
    )
    bank = _resume(path, made) or _empty(made, train, judging)
    if keeper is not None:
        _begin(keeper, team, made, fresh(_plan(seed, 0, len(train))[1]))

    def margins(index: int, half: Tensor, own_seed: int) -> dict[str, Tensor]:
        def told(fraction: float, metrics: dict[str, float]) -> None:
            progress((index + fraction) / num_models, metrics)

        model = fit(
            fresh(own_seed),
            train.take(half),
            recipe,
            seed=own_seed,
            device=device,
            progress=told,
            check_time=check_time,
            keeper=keeper,
            team=team,
        )
        roles = {"train": train, "judging": judging}
        return {role: _margins(model, r, batch_size, device) for role, r in roles.items()}

    # Asked to end between two trainings, the next one hears it.
    with nullcontext() if keeper is None else keeper.training():
        for index in range(len(bank), num_models):
            half, own_seed = _plan(seed, index, len(train))
            said = once(keeper, f"model {index}", partial(margins, index, half, own_seed))
            bank = _with(bank, half, said["train"], said["judging"])
            save(bank, path)
            if keeper is not None and team is not None:
                keeper.notes["processes"] = [each.model_dump(mode="json") for each in team.told]
    progress(1.0, {})
    return bank


def _begin(keeper: Keeper, team: Team | None, made: Made, first: nn.Module) -> None:
    """Tell the keeper of which bank the models are, and the team who trained those before."""
    told = [asdict(made), weights.digest(first)]
    before = keeper.notes.get("processes", [])
    if keeper.turn_to(hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()):
        if team is not None:
            team.told += [Processes.model_validate(each) for each in before]
    else:
        keeper.notes = {}


def save(bank: Bank, path: Path) -> None:
    """Write the bank beside ``path``, flush it to disk, and put it in its place."""
    tensors = {
        name: getattr(bank, name).contiguous()
        for name in ("train_rows", "judging_rows", "trained_on", "train_margins", "judging_margins")
    }
    whole = path.with_name(path.name + ".new")
    safetensors.torch.save_file(tensors, whole, metadata={"made": json.dumps(asdict(bank.made))})
    with whole.open("rb") as file:
        os.fsync(file.fileno())
    whole.replace(path)


def load(path: Path) -> Bank:
    """Read a bank.

    Raises:
        InvalidInput: ``reference_bank_invalid`` if it is none, or is damaged.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            made = Made(**json.loads(file.metadata()["made"]))
            bank = Bank(made=made, **{name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (safetensors.SafetensorError, TypeError, KeyError, ValueError):
        raise InvalidInput("reference_bank_invalid", "the file is no bank of margins") from None
    num_train, num_judging = len(bank.train_rows), len(bank.judging_rows)
    shapes = [t.shape[1:] for t in (bank.trained_on, bank.train_margins, bank.judging_margins)]
    if shapes != [(num_train,), (num_train,), (num_judging,)]:
        raise InvalidInput("reference_bank_invalid", "the parts of the bank do not fit together")
    return bank


def _resume(path: Path, made: Made) -> Bank | None:
    if not path.exists():
        return None
    bank = load(path)
    return bank if bank.made == made else None


def _empty(made: Made, train: Records, judging: Records) -> Bank:
    return Bank(
        made=made,
        train_rows=train.rows,
        judging_rows=judging.rows,
        trained_on=torch.zeros(0, len(train), dtype=torch.bool),
        train_margins=torch.zeros(0, len(train)),
        judging_margins=torch.zeros(0, len(judging)),
    )


def _with(bank: Bank, half: Tensor, train: Tensor, judging: Tensor) -> Bank:
    return replace(
        bank,
        trained_on=torch.cat([bank.trained_on, half[None]]),
        train_margins=torch.cat([bank.train_margins, train[None]]),
        judging_margins=torch.cat([bank.judging_margins, judging[None]]),
    )


def _plan(seed: int, index: int, count: int) -> tuple[Tensor, int]:
    """Mask of the records that a model is trained on, and its seed; the same in every run."""
    draw = generator(seed)
    for _ in range(index // 2 + 1):
        pair = torch.randint(2**62, (2,), generator=draw)
    order = torch.randperm(count, generator=generator(int(pair[0])))
    first = torch.zeros(count, dtype=torch.bool)
    first[order[: count // 2]] = True
    return (~first if index % 2 else first), int(pair[index % 2])


def _margins(model: nn.Module, records: Records, batch_size: int, device: torch.device) -> Tensor:
    logits = gather(model, records, batch_size=batch_size, device=device)
    return margin(logits, records.labels).float()


def _ordered(records: Records) -> Records:
    return records.take(records.rows.argsort())


def _positions(rows: Tensor, wanted: Tensor) -> Tensor:
    at = torch.searchsorted(rows, wanted).clamp(max=max(len(rows) - 1, 0))
    if len(rows) == 0 or not bool((rows[at] == wanted).all()):
        raise MissingEvidence("the reference models do not know all of these records")
    return at
