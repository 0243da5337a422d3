"""Records as tensors: a canonical parquet file, decoded once into uint8, batched without a loop.

The canonical file is what ``core.ingest`` writes: columns ``id``, ``label``, ``split`` and either
``image`` (encoded bytes) or ``features`` (fixed-size list of float32). A row number is the index
of a record in that file.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from . import images
from .errors import InvalidInput
from .registry import misfit

Modality = Literal["image", "features"]
Augmentation = Literal["crop", "flip"]
Split = Literal["train", "holdout"]


class Preprocessing(BaseModel):
    """How stored values become network input: ``(value * scale - mean) / std`` per channel."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    height: int | None = Field(None, ge=1, le=4096, description="Image height in pixels.")
    width: int | None = Field(None, ge=1, le=4096, description="Image width in pixels.")
    channels: Literal[1, 3] | None = Field(None, description="1 for grey, 3 for RGB.")
    scale: float | None = Field(
        None,
        gt=0,
        le=1e6,
        description="Factor on stored values; 1/255 for images and 1 for features if left out.",
    )
    mean: tuple[float, ...] = Field(
        (), max_length=65536, description="Mean per channel or feature, after scaling."
    )
    std: tuple[float, ...] = Field(
        (), max_length=65536, description="Standard deviation per channel or feature, above zero."
    )
    resize: images.Resize | None = Field(
        None, description="Filter for images of another size; left out, another size is an error."
    )

    @model_validator(mode="after")
    def _agree(self) -> Self:
        sides = ("height", "width", "channels")
        given = [side for side in sides if getattr(self, side) is not None]
        if 0 < len(given) < len(sides):
            raise misfit(self, given[0], "height, width and channels go together")
        if self.resize is not None and not given:
            raise misfit(self, "resize", "resize is for images: give height, width and channels")
        if len(self.mean) != len(self.std):
            longer = "mean" if len(self.mean) > len(self.std) else "std"
            raise misfit(self, longer, "mean and std must have the same length")
        if any(value < 1e-8 for value in self.std):
            raise misfit(self, "std", "std must be at least 1e-8")
        if self.channels is not None and len(self.mean) not in {0, self.channels}:
            raise misfit(self, "mean", "mean and std need one value per channel, or none")
        return self

    @property
    def modality(self) -> Modality:
        """What kind of record this is for."""
        return "features" if self.height is None else "image"


@dataclass(frozen=True, kw_only=True, eq=False)
class Records:
    """Decoded records, held as they are stored and normalised batch by batch."""

    images: Tensor
    """uint8[N, C, H, W], or float32[N, D] for features."""
    labels: Tensor
    """int64[N]."""
    rows: Tensor
    """int64[N]: row numbers in the dataset."""
    preprocessing: Preprocessing = field(default_factory=Preprocessing)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor | Sequence[int] | Sequence[bool]) -> Records:
        """Return the records at these positions (or under this mask), in this order."""
        index = torch.as_tensor(index)
        if index.dtype != torch.bool:
            index = index.long()
        return replace(
            self, images=self.images[index], labels=self.labels[index], rows=self.rows[index]
        )

    def join(self, others: Records) -> Records:
        """Return these records and then the others, which are prepared alike."""
        return replace(
            self,
            images=torch.cat([self.images, others.images]),
            labels=torch.cat([self.labels, others.labels]),
            rows=torch.cat([self.rows, others.rows]),
        )

    def to(self, device: torch.device) -> Records:
        """Return the records with their values and labels on ``device``."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def digest(self) -> str:
        """Return the sha256 in hex of rows, labels and values, in their order."""
        sha256 = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        for tensor in (self.rows, self.labels, self.images):
            sha256.update(tensor.cpu().contiguous().numpy().data)
        return sha256.hexdigest()

    def batches(
        self,
        batch_size: int,
        device: torch.device | str = "cpu",
        *,
        generator: torch.Generator | None = None,
        augment: Sequence[Augmentation] | None = None,
        even: bool = False,
        share: tuple[int, int] = (0, 1),
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield normalised float32 inputs with int64 labels.

        Without ``generator`` the order is that of the records and nothing is random.

        Args:
            batch_size: records per batch; the last one may be shorter.
            device: where the batches go.
            generator: a CPU generator; shuffles, and draws the augmentation.
            augment: random crops after padding by an eighth, random horizontal flips.
            even: all batches of like size (``num_batches``), so that batch norm never meets a last
                one with a few records.
            share: which part of every batch, of how many like ones; order and augmentation are
                those of the whole batch, so that the parts together are the batch.

        Raises:
            ValueError: if ``augment`` is asked for without a generator or on features.
        """
        if augment and (generator is None or self.images.ndim != 4):
            raise ValueError("augmentation needs images and a generator")
        for index in _plan(len(self), batch_size, generator, even):
            part = _part(len(index), *share)
            moves = None
            if augment and generator is not None:
                moves = _draw(len(index), self.images.shape[2:], augment, generator)
            index = index[part].to(self.images.device)
            x = self.images.index_select(0, index)
            if moves is not None:
                x = _move(x, moves, part)
            x = self._normalise(x.to(device, non_blocking=True))
            yield x, self.labels.index_select(0, index).to(device, non_blocking=True)

    def _normalise(self, x: Tensor) -> Tensor:
        options = self.preprocessing
        is_image = x.ndim == 4
        scale = options.scale if options.scale is not None else (1 / 255 if is_image else 1.0)
        shape = (1, -1, 1, 1) if is_image else (1, -1)
        x = x.to(torch.float32)
        if is_image:
            x = x.contiguous(memory_format=torch.channels_last)
        if not options.mean:
            return x if scale == 1.0 else x.mul(scale)
        mean = torch.tensor(options.mean, dtype=torch.float64)
        std = torch.tensor(options.std, dtype=torch.float64)
        factor = (scale / std).to(x).reshape(shape)
        return torch.addcmul((-mean / std).to(x).reshape(shape), x, factor)


def num_batches(count: int, batch_size: int) -> int:
    """Return how many even batches hold this many records.

    None has one record, unless it is asked for or there is but one: batch norm can't normalise it.
    So batches of two may become batches of three.
    """
    fewest = math.ceil(count / batch_size)
    return fewest if batch_size == 1 or count < 2 else min(fewest, count // 2)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A canonical parquet file: ids, labels and splits at hand, values read when asked for."""

    path: Path
    ids: list[str]
    labels: Tensor
    """int64[N]."""
    is_holdout: Tensor
    """bool[N]: the record is in the ``holdout`` split; the others are in ``train``."""
    modality: Modality

    @classmethod
    def open(cls, path: Path) -> Dataset:
        """Read everything but the values of a canonical file."""
        with pq.ParquetFile(path) as file:
            modality: Modality = "image" if "image" in file.schema_arrow.names else "features"
            table = file.read(columns=["id", "label", "split"])
        splits = np.asarray(table["split"].to_pylist(), dtype=object)
        return cls(
            path=Path(path),
            ids=table["id"].to_pylist(),
            labels=torch.from_numpy(table["label"].to_numpy().astype(np.int64)),
            is_holdout=torch.from_numpy(np.asarray(splits == "holdout", dtype=bool)),
            modality=modality,
        )

    def __len__(self) -> int:
        return len(self.ids)

    def rows_in(self, split: Split) -> Tensor:
        """Row numbers of a split, ascending."""
        mask = self.is_holdout if split == "holdout" else ~self.is_holdout
        return mask.nonzero().flatten()

    def records(self, rows: Tensor | Sequence[int], preprocessing: Preprocessing) -> Records:
        """Read and decode these rows, in this order.

        Raises:
            InvalidInput: ``dataset_values_invalid`` if preprocessing does not fit the data; the
                codes of ``images.read`` if an image can't be decoded.
        """
        rows = torch.as_tensor(rows, dtype=torch.int64)
        if preprocessing.modality != self.modality:
            raise InvalidInput(
                "dataset_values_invalid",
                f"the dataset holds {self.modality}, preprocessing is for {preprocessing.modality}",
            )
        return Records(
            images=torch.from_numpy(self._values(rows.numpy(), preprocessing)),
            labels=self.labels[rows],
            rows=rows,
            preprocessing=preprocessing,
        )

    def _values(self, rows: np.ndarray[Any, Any], preprocessing: Preprocessing) -> Any:
        with pq.ParquetFile(self.path) as file:
            out = self._empty(file, len(rows), preprocessing)
            start = 0
            for group in range(file.metadata.num_row_groups):
                end = start + file.metadata.row_group(group).num_rows
                wanted = np.flatnonzero((rows >= start) & (rows < end))
                if len(wanted):
                    column = file.read_row_group(group, columns=[self.modality])[self.modality]
                    cells = column.take(pa.array(rows[wanted] - start)).combine_chunks()
                    out[wanted] = _decode(cells, preprocessing)
                start = end
        return out

    def _empty(self, file: pq.ParquetFile, count: int, options: Preprocessing) -> Any:
        if self.modality == "image":
            assert options.channels is not None
            assert options.height is not None
            assert options.width is not None
            shape = (count, options.channels, options.height, options.width)
            return np.empty(shape, dtype=np.uint8)
        width = file.schema_arrow.field("features").type.list_size
        if len(options.mean) not in {0, 1, width}:
            raise InvalidInput(
                "dataset_values_invalid",
                f"mean and std have {len(options.mean)} values, records have {width} features",
            )
        return np.empty((count, width), dtype=np.float32)


def split_holdout(ids: Sequence[str], key: str) -> Tensor:
    """Halve a holdout by keyed hash of the record ids: bool[N], True for the tuning half.

    A record stays in its half whatever else the holdout holds. The other half is for judging.
    """
    secret = hashlib.sha256(key.encode()).digest()
    halves = [
        hashlib.blake2b(record_id.encode(), key=secret, digest_size=1).digest()[0] & 1
        for record_id in ids
    ]
    return torch.tensor(halves, dtype=torch.bool)


def _decode(cells: pa.Array, options: Preprocessing) -> Any:
    if options.height is None:
        return cells.flatten().to_numpy(zero_copy_only=False).reshape(len(cells), -1)
    assert options.width is not None
    assert options.channels is not None
    return images.decode(
        cells.to_pylist(),
        height=options.height,
        width=options.width,
        channels=options.channels,
        resize=options.resize,
    )


def _plan(
    count: int, batch_size: int, generator: torch.Generator | None, even: bool
) -> Sequence[Tensor]:
    order = torch.arange(count) if generator is None else torch.randperm(count, generator=generator)
    if count == 0:
        return []
    return order.tensor_split(num_batches(count, batch_size)) if even else order.split(batch_size)


def _part(count: int, number: int, of: int) -> slice:
    return slice(count * number // of, count * (number + 1) // of)


@dataclass(frozen=True)
class _Moves:
    """What becomes of each image of a batch; N of them."""

    pad: tuple[int, int]
    """Rows and columns that are put around the images first."""
    top: Tensor
    """int64[N]: first row that is kept."""
    left: Tensor
    """int64[N]: first column."""
    columns: Tensor
    """int64[N, W]: their order, which is turned round in a flipped image."""


def _draw(
    count: int, size: Sequence[int], augment: Sequence[Augmentation], generator: torch.Generator
) -> _Moves:
    """Draw crops and flips for a batch, one random draw per image."""
    height, width = size
    pad = (0, 0)
    top = torch.zeros(count, dtype=torch.int64)
    left = torch.zeros(count, dtype=torch.int64)
    columns = torch.arange(width).expand(count, width)
    if "crop" in augment:
        pad = (max(1, height // 8), max(1, width // 8))
        top = torch.randint(0, 2 * pad[0] + 1, (count,), generator=generator)
        left = torch.randint(0, 2 * pad[1] + 1, (count,), generator=generator)
    if "flip" in augment:
        flipped = torch.rand(count, generator=generator) < 0.5
        columns = torch.where(flipped[:, None], width - 1 - columns, columns)
    return _Moves(pad, top, left, columns)


def _move(x: Tensor, moves: _Moves, part: slice) -> Tensor:
    """Crop and flip the uint8 images of this part of a batch."""
    count, _, height, _ = x.shape
    pad_y, pad_x = moves.pad
    if pad_y:
        x = torch.nn.functional.pad(x, (pad_x, pad_x, pad_y, pad_y))
    rows = (moves.top[part][:, None] + torch.arange(height)).to(x.device)
    columns = (moves.left[part][:, None] + moves.columns[part]).to(x.device)
    each = torch.arange(count, device=x.device)[:, None, None]
    return x.permute(0, 2, 3, 1)[each, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
