"""Records: decoded as asked, normalised exactly, batched without losing or inventing anything."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from core import images, parquet
from core.data import Dataset, Preprocessing, Records, num_batches, split_holdout
from core.errors import InvalidInput
from core.ingest import ingest
from tests.worlds import digits_world, gaussian_world, png, write_dataset

SQUARE = Preprocessing(height=8, width=8, channels=3)


def noise(
    height: int = 8, width: int = 8, channels: int = 3, seed: int = 0
) -> np.ndarray[Any, Any]:
    draw = np.random.default_rng(seed)
    return draw.integers(0, 256, (height, width, channels), dtype=np.uint8)


def encoded(pixels: images.Pixels, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(buffer, kind, **options)
    return buffer.getvalue()


def of_images(count: int, seed: int = 0, preprocessing: Preprocessing = SQUARE) -> Records:
    draw = torch.Generator().manual_seed(seed)
    return Records(
        images=torch.randint(0, 256, (count, 3, 8, 8), generator=draw, dtype=torch.uint8),
        labels=torch.arange(count) % 5,
        rows=torch.arange(count) + 100,
        preprocessing=preprocessing,
    )


def opened(tmp_path: Path, source: Path) -> Dataset:
    ingest(source=source, out=tmp_path, max_records=10_000)
    return Dataset.open(tmp_path / "records.parquet")


def test_a_dataset_gives_back_the_pixels_that_went_in(tmp_path: Path) -> None:
    world = digits_world(num_records=100)
    dataset = opened(tmp_path, write_dataset(world, tmp_path / "up.parquet"))
    assert dataset.ids == world.ids
    assert dataset.modality == "image"
    assert torch.equal(dataset.rows_in("train"), world.train.rows)
    assert torch.equal(dataset.rows_in("holdout"), world.holdout.rows)
    records = dataset.records([70, 3, 3, 55], world.preprocessing)
    everything = torch.cat([world.train.images, world.holdout.images])
    assert torch.equal(records.images, everything[[70, 3, 3, 55]])
    assert torch.equal(records.labels, dataset.labels[[70, 3, 3, 55]])
    assert records.rows.tolist() == [70, 3, 3, 55]


def test_rows_are_found_across_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.ingest._GROUP_ROWS", 50)
    monkeypatch.setitem(parquet._BATCH, "features", 20)
    world = gaussian_world(num_train=90, num_holdout=90)
    dataset = opened(tmp_path, write_dataset(world, tmp_path / "up.parquet"))
    rows = torch.randperm(180, generator=torch.Generator().manual_seed(0))
    everything = torch.cat([world.train.images, world.holdout.images])
    assert torch.equal(dataset.records(rows, Preprocessing()).images, everything[rows])
    assert len(dataset.records([], Preprocessing())) == 0


def test_preprocessing_must_fit_the_data(tmp_path: Path) -> None:
    features = gaussian_world(num_train=8, num_holdout=8)
    dataset = opened(tmp_path, write_dataset(features, tmp_path / "up.parquet"))
    two = Preprocessing(mean=(0.0, 0.0), std=(1.0, 1.0))
    for wrong in (SQUARE, two):
        with pytest.raises(InvalidInput) as caught:
            dataset.records([0], wrong)
        assert caught.value.code == "dataset_values_invalid"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"width": 8}, "width"),
        ({"height": 8, "width": 8, "channels": 2}, "channels"),
        ({"height": 0, "width": 8, "channels": 1}, "height"),
        ({"height": 8, "width": 8, "channels": 3, "mean": [0.5], "std": [0.5]}, "mean"),
        ({"mean": [0.5], "std": []}, "mean"),
        ({"std": [0.5]}, "std"),
        ({"mean": [0.5], "std": [0.0]}, "std"),
        ({"scale": 0}, "scale"),
        ({"scale": float("inf")}, "scale"),
        ({"resize": "bilinear"}, "resize"),
        ({"height": 8, "width": 8, "channels": 3, "resize": "lanczos"}, "resize"),
        ({"crop": 3}, "crop"),
    ],
)
def test_preprocessing_out_of_bounds_is_refused_by_name(
    options: dict[str, Any], field: str
) -> None:
    with pytest.raises(ValidationError) as refused:
        Preprocessing.model_validate(options)
    assert [error["loc"] for error in refused.value.errors()] == [(field,)]


def test_images_are_scaled_then_normalised_and_laid_out_channels_last() -> None:
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    options = SQUARE.model_copy(update={"mean": mean, "std": std})
    records = of_images(5, preprocessing=options)
    ((x, y),) = records.batches(10)
    expected = records.images.double() / 255
    expected = (expected - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(x.double(), expected, rtol=1e-5, atol=1e-5)
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert x.dtype == torch.float32
    assert torch.equal(y, records.labels)


def test_features_are_left_alone_unless_asked() -> None:
    records = gaussian_world(num_train=8, num_holdout=8).train
    ((x, _),) = records.batches(10)
    assert torch.equal(x, records.images)
    options = Preprocessing(scale=2.0, mean=(1.0,), std=(0.5,))
    other = Records(
        images=records.images, labels=records.labels, rows=records.rows, preprocessing=options
    )
    ((x, _),) = other.batches(10)
    torch.testing.assert_close(x, (records.images * 2 - 1) / 0.5)


def test_without_a_generator_order_and_values_never_change() -> None:
    records = of_images(10)
    first = torch.cat([y for _, y in records.batches(3)])
    assert torch.equal(first, records.labels)
    assert [len(y) for _, y in records.batches(3)] == [3, 3, 3, 1]


@pytest.mark.parametrize(
    ("count", "batch_size", "sizes"),
    [
        (10, 3, [3, 3, 2, 2]),
        (9, 4, [3, 3, 3]),
        (10, 1, [1] * 10),
        (5, 2, [3, 2]),
        (1, 2, [1]),
        (0, 2, []),
    ],
)
def test_even_batches_leave_no_small_rest(count, batch_size, sizes):
    records = of_images(10).take(torch.arange(count))
    batches = [y for _, y in records.batches(batch_size, even=True)]
    assert [len(y) for y in batches] == sizes
    assert torch.equal(torch.cat([records.labels[:0], *batches]), records.labels)
    assert num_batches(count, batch_size) == len(sizes)


def test_shuffling_shows_every_record_once_in_an_order_of_the_seed() -> None:
    records = of_images(50)
    orders = [
        torch.cat([x for x, _ in records.batches(8, generator=torch.Generator().manual_seed(seed))])
        for seed in (1, 1, 2)
    ]
    ((plain, _),) = records.batches(50)
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])
    key = plain[:, 0, 0, 0] + 1000 * plain[:, 1, 1, 1]
    shuffled = orders[0][:, 0, 0, 0] + 1000 * orders[0][:, 1, 1, 1]
    assert torch.equal(key.sort().values, shuffled.sort().values)


def test_flips_mirror_about_half_of_the_images() -> None:
    records = of_images(400)
    draw = torch.Generator().manual_seed(0)
    ((x, y),) = records.batches(400, generator=draw, augment=["flip"])
    order = torch.randperm(400, generator=torch.Generator().manual_seed(0))
    plain = (records.images[order].float() / 255).to(x)
    same = (x - plain).abs().amax(dim=(1, 2, 3)) < 1e-6
    mirrored = (x - plain.flip(3)).abs().amax(dim=(1, 2, 3)) < 1e-6
    assert (same ^ mirrored).all()
    assert 150 < mirrored.sum() < 250
    assert torch.equal(y, records.labels[order])


def test_crops_are_windows_of_the_padded_image() -> None:
    records = of_images(40)
    draw = torch.Generator().manual_seed(0)
    ((x, _),) = records.batches(40, generator=draw, augment=["crop"])
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(records.images[order], (1, 1, 1, 1)).float() / 255
    windows = [padded[:, :, i : i + 8, j : j + 8] for i in range(3) for j in range(3)]
    fits = torch.stack([(x - w).abs().amax(dim=(1, 2, 3)) < 1e-6 for w in windows])
    assert (fits.sum(dim=0) == 1).all()
    assert fits.any(dim=1).sum() > 5


def test_augmentation_without_a_generator_or_on_features_is_an_error() -> None:
    for records, draw in (
        (of_images(4), None),
        (gaussian_world(num_train=8, num_holdout=8).train, torch.Generator()),
    ):
        with pytest.raises(ValueError, match="augmentation"):
            next(records.batches(2, generator=draw, augment=["flip"]))


def test_take_follows_positions_and_masks() -> None:
    records = of_images(6)
    assert records.take([4, 0]).rows.tolist() == [104, 100]
    assert records.take(records.labels == 0).rows.tolist() == [100, 105]
    assert len(records.take([])) == 0
    assert records.take([1]).preprocessing is records.preprocessing


def test_digest_sees_rows_labels_values_and_order() -> None:
    records = of_images(6)
    digests = {
        records.digest(),
        records.take([1, 0, 2, 3, 4, 5]).digest(),
        of_images(6, seed=1).digest(),
        records.take(range(5)).digest(),
    }
    assert len(digests) == 4
    assert records.digest() == of_images(6).digest()


def test_the_holdout_is_halved_by_key_and_id_alone() -> None:
    ids = [f"r{i}" for i in range(2000)]
    tuning = split_holdout(ids, "key")
    assert 900 < tuning.sum() < 1100
    assert torch.equal(split_holdout(ids[::-1], "key"), tuning.flip(0))
    assert not torch.equal(split_holdout(ids, "other"), tuning)
    assert len(split_holdout([], "key")) == 0


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("stored", [1, 3])
def test_images_decode_as_pillow_does(kind: str, channels: int, stored: int) -> None:
    data = encoded(noise(channels=stored), kind)
    image = Image.open(io.BytesIO(data)).convert("L" if channels == 1 else "RGB")
    expected = np.asarray(image).reshape(8, 8, channels).transpose(2, 0, 1)
    got = images.decode([data] * 3, height=8, width=8, channels=channels, resize=None)
    assert got.dtype == np.uint8
    assert all(np.array_equal(one, expected) for one in got)


@pytest.mark.parametrize("resize", ["nearest", "bilinear", "bicubic"])
def test_other_sizes_are_resized_or_refused(resize: images.Resize) -> None:
    data = encoded(noise(20, 12), "JPEG")
    got = images.decode([data], height=8, width=6, channels=3, resize=resize)
    expected = Image.open(io.BytesIO(data)).resize((6, 8), Image.Resampling[resize.upper()])
    assert np.array_equal(got[0], np.asarray(expected).transpose(2, 0, 1))
    with pytest.raises(InvalidInput) as caught:
        images.decode([data], height=8, width=6, channels=3, resize=None)
    assert caught.value.code == "dataset_values_invalid"


def test_many_large_images_keep_their_order() -> None:
    cells = [png(noise(90, 90, seed=seed)) for seed in range(5)] * 40
    got = images.decode(cells, height=90, width=90, channels=3, resize=None)
    assert sum(map(len, cells)) > 16_384 * len(cells)
    for index in range(200):
        assert np.array_equal(got[index].transpose(1, 2, 0), noise(90, 90, seed=index % 5))
