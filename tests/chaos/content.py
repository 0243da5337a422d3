"""What each published model must be, bit by bit: retrained here on what may stay.

Nothing of the service enters but the seeds its jobs were given and the digest of the upload.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import torch

from core import networks, weights
from core.determinism import fresh_seed
from core.device import choose
from core.training import Recipe, fit
from tests.chaos.world import ARCHITECTURE, NUM_RECORDS, RECORDS_PER_SUBJECT, recipe, records
from tests.e2e.client import Json

THREADS = 1
"""What the runners of ``tests.e2e.stack`` have; another number gives other bits."""


def chain(digest: str, jobs: Iterable[tuple[int, list[Json]]], epochs: int) -> list[str]:
    """Digests that the versions of a model must have.

    Args:
        digest: of the version that was uploaded.
        jobs: seed and selectors of each job that published one, in their order.
        epochs: of the model's recipe.
    """
    digests, forgotten = [digest], frozenset[int]()
    for seed, selectors in jobs:
        forgotten = forgotten.union(*map(rows, selectors))
        digests.append(retrained(digests[-1], forgotten, seed, epochs))
    return digests


@cache
def retrained(parent: str, forgotten: frozenset[int], seed: int, epochs: int) -> str:
    """Digest of the model that the exact policy makes of the one with the digest ``parent``."""
    torch.set_num_threads(THREADS)
    known = records()
    kept = torch.tensor([row not in forgotten for row in range(NUM_RECORDS)])
    own_seed = fresh_seed(seed)
    model = networks.build(networks.parse(ARCHITECTURE), fresh_seed(own_seed, parent))
    made = Recipe.model_validate(recipe(epochs))
    return weights.digest(fit(model, known.take(kept), made, seed=own_seed, device=choose("cpu")))


def rows(selector: Json) -> frozenset[int]:
    """Training rows that a selector names."""
    match selector:
        case {"type": "record_ids", "record_ids": ids}:
            return frozenset(int(each[1:]) for each in ids)
        case {"type": "subject", "subject_ref": subject}:
            start = RECORDS_PER_SUBJECT * int(subject[1:])
            return frozenset(range(start, start + RECORDS_PER_SUBJECT))
        case {"type": "class", "class": label}:
            return frozenset((records().labels == label).nonzero().flatten().tolist())
    raise AssertionError(selector)
