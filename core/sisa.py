"""Training by shards, so that forgetting a record means training one member of an ensemble again.

A record's shard is a keyed hash of its row number in the dataset: fixed before any request,
independent of what the record holds. Core knows no subjects, so the records of one subject lie in
several shards, and a request for the subject trains all of these again.

    model = sisa.train(architecture, records, recipe)
    weights.save(model, path)

Source: Bourtoule et al., IEEE S&P 2021, arXiv:1912.03817.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from . import networks, weights
from .checkpoints import Keeper, once
from .data import Records
from .errors import InvalidInput
from .networks.ensemble import Ensemble
from .recipe import Recipe
from .registry import Config
from .report import Progress, no_progress
from .training import fit


def train(
    architecture: dict[str, Any],
    records: Records,
    recipe: Recipe,
    *,
    seed: int | None = None,
    device: torch.device | None = None,
    progress: Progress = no_progress,
    keeper: Keeper | None = None,
) -> Ensemble:
    """Train an ``ensemble`` from scratch, each member on its shard alone, and seal it.

    Args:
        architecture: name ``ensemble`` and its options.
        records: training records, with the row numbers they have in the dataset.
        recipe: of each member.
        seed: of initialisation and order; the recipe's if left out.
        device: where to train.
        progress: told after each member.
        keeper: keeps the members that are done and the state of the one at work, and has what an
            interrupted training left.

    Raises:
        Interrupted: if ``keeper`` was asked to end, and has the state.
        InvalidInput: if the network is no ensemble, or a shard has too few records to train on.
    """
    config = networks.parse(architecture)
    seed = recipe.seed if seed is None else seed
    model = ensemble_of(networks.build(config, seed))
    parts = shards(records.rows, len(model.members), model.shard_key)
    if keeper is not None:
        keeper.turn_to(_work(config, records, recipe, seed))
    for shard in range(len(model.members)):
        model.members[shard] = train_member(
            lambda fresh_seed: networks.build(config, fresh_seed),
            shard,
            records.take(parts == shard),
            recipe,
            seed=seed,
            device=torch.device("cpu") if device is None else device,
            keeper=keeper,
        )
        seal(model, shard)
        progress((shard + 1) / len(model.members), {})
    return model.eval()


def train_member(
    fresh: Callable[[int], nn.Module],
    shard: int,
    records: Records,
    recipe: Recipe,
    *,
    seed: int,
    device: torch.device,
    progress: Progress = no_progress,
    check_time: Callable[[], None] | None = None,
    keeper: Keeper | None = None,
) -> nn.Module:
    """Train one member from a fresh initialisation on the records of its shard.

    One process trains it: members are not shared among several.

    Args:
        fresh: builds an untrained ensemble from a seed.
        shard: number of the member.
        records: those of the shard; others are our own mistake.
        recipe: of the member.
        seed: of the whole ensemble; each member derives its own.
        device: where to train.
        progress: told about twice a second.
        check_time: called before each step; raises to stop.
        keeper: as for ``fit``; a member that it has whole is not trained again.
    """
    own = member_seed(seed, shard)
    member = ensemble_of(fresh(own)).members[shard]

    def trained() -> Mapping[str, Tensor]:
        return fit(
            member,
            records,
            recipe,
            seed=own,
            device=device,
            progress=progress,
            check_time=check_time,
            keeper=keeper,
        ).state_dict()

    member.load_state_dict(once(keeper, f"member {shard}", trained))
    return member.eval()


def shards(rows: Tensor, members: int, key: str) -> Tensor:
    """Return int64[N]: the shard of every record, from 0, by keyed hash of its row number."""
    secret = hashlib.sha256(key.encode()).digest()
    digests = (
        hashlib.blake2b(struct.pack(">q", row), key=secret, digest_size=8).digest()
        for row in rows.tolist()
    )
    return torch.tensor([int.from_bytes(d) % members for d in digests], dtype=torch.int64)


def member_seed(seed: int, shard: int) -> int:
    """Derive the seed of one member, so that members are independent of each other."""
    return int.from_bytes(
        hashlib.sha256(f"member {shard} of {seed}".encode()).digest()[:8], signed=True
    )


def ensemble_of(model: nn.Module) -> Ensemble:
    """Return the model, which must be an ensemble.

    Raises:
        InvalidInput: ``architecture_invalid`` if it is another network.
    """
    if not isinstance(model, Ensemble):
        raise InvalidInput("architecture_invalid", "training by shards is for the ensemble network")
    return model


def seal(model: Ensemble, shard: int) -> None:
    """Note what the member is now; only who trained it on its shard alone may call this."""
    model.seal[shard] = _fingerprint(model.members[shard]).to(model.seal.device)


def broken_seals(model: Ensemble) -> list[int]:
    """Members that were changed since they were trained on their shard, or never were."""
    return [
        shard
        for shard, member in enumerate(model.members)
        if not torch.equal(model.seal[shard].cpu(), _fingerprint(member))
    ]


def _work(config: Config, records: Records, recipe: Recipe, seed: int) -> str:
    """Digest of all that decides about the members."""
    told = [config.model_dump(mode="json"), records.digest(), recipe.model_dump(mode="json"), seed]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _fingerprint(member: nn.Module) -> Tensor:
    return torch.tensor(struct.unpack(">4q", bytes.fromhex(weights.digest(member))))
