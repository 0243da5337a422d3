"""What the checker expects of weights is what the ladder makes, and nothing else is taken."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.ingest import ingest
from core.ladder import unlearn
from tests.chaos import content, world

EPOCHS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world's files: as they are uploaded, and ingested."""
    made = tmp_path_factory.mktemp("world")
    world.write_dataset(made / "tiny.parquet")
    ingest(source=made / "tiny.parquet", out=made, max_records=10_000)
    return made


def published(folder: Path, weights: Path, forget: list[int], excluded: list[int]) -> str:
    """Digest of what a job with the exact policy publishes."""
    out = folder / f"{len(excluded)}"
    out.mkdir()
    result = unlearn(
        out=out,
        weights=weights,
        architecture=world.ARCHITECTURE,
        preprocessing=world.PREPROCESSING,
        dataset=folder / "records.parquet",
        holdout=folder / "records.parquet",
        recipe=world.recipe(EPOCHS),
        excluded=excluded,
        split_key="m",
        importance=None,
        requests={"req_1": forget},
        selector="records",
        forget_classes=[],
        policy="exact",
        ladder=[{"name": "retrain"}],
        seed=len(excluded),
        batch_size=64,
        bn_policy="recalibrate",
        time_limit_seconds=600.0,
        device="cpu",
    )
    return str(result["digest"])


def test_the_whole_chain_is_known_beforehand(folder: Path) -> None:
    uploaded = folder / "tiny.safetensors"
    digest = world.train(uploaded, world.recipe(3))
    first = published(folder, uploaded, [5, 7], [])
    second = published(folder, folder / "0" / "model.safetensors", [10, 11, 12, 13, 14], [5, 7])
    asked = [
        (0, [{"type": "record_ids", "record_ids": ["r0005", "r0007"]}]),
        (2, [{"type": "subject", "subject_ref": "s002"}]),
    ]
    assert content.chain(digest, asked, EPOCHS) == [digest, first, second]
    one_stays = [(0, [{"type": "record_ids", "record_ids": ["r0005"]}])]
    assert content.chain(digest, one_stays, EPOCHS)[-1] != first


def test_a_class_is_all_its_training_records() -> None:
    of_seven = content.rows({"type": "class", "class": 7})
    labels = world.records().labels
    assert {int(labels[row]) for row in of_seven} == {7}
    assert len(of_seven) == int((labels == 7).sum())
