"""Encoded bytes to pixels: PNG, JPEG and WEBP only, bounded before anything is decoded."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from .errors import InvalidInput

Pixels = npt.NDArray[np.uint8]
Resize = Literal["nearest", "bilinear", "bicubic"]

MAX_PIXELS = 1 << 25
"""Pixels of one image, before resizing."""

_FORMATS = ("PNG", "JPEG", "WEBP")
_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"})
"""Eight bits per channel or fewer; converting wider ones would clip them in silence."""
_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
_SMALL = 16_384
"""Bytes; below, the interpreter costs more than the decoder."""
CHUNK = 8


def check(data: bytes) -> tuple[int, int]:
    """Decode one image and return its height and width.

    Raises:
        InvalidInput: as ``read``.
    """
    fast = _fast_jpeg(data)
    if fast is not None:
        return fast.shape[1], fast.shape[2]
    image = read(data)
    return image.height, image.width


def read(data: bytes) -> Image.Image:
    """Decode one image of one frame.

    Raises:
        InvalidInput: ``image_format_unsupported``, ``image_too_large`` or ``image_invalid``.
    """
    if not _has_known_magic(data):
        raise InvalidInput("image_format_unsupported", "an image is not PNG, JPEG or WEBP")
    image = _open(data)
    if image.width * image.height > MAX_PIXELS:
        raise InvalidInput("image_too_large", f"an image has more than {MAX_PIXELS} pixels")
    if image.mode not in _MODES:
        raise InvalidInput("image_format_unsupported", "an image has more than 8 bits per channel")
    if image.format in {"PNG", "WEBP"} and getattr(image, "n_frames", 1) != 1:
        raise InvalidInput("image_format_unsupported", "an image is animated")
    try:
        image.load()
    except Exception:  # noqa: BLE001  # decoders raise anything on hostile bytes
        raise InvalidInput("image_invalid", "an image can't be decoded") from None
    return image


def pixels(data: bytes, *, height: int, width: int, channels: int, resize: Resize | None) -> Pixels:
    """Decode one image to uint8[channels, height, width], grey or RGB.

    EXIF orientation is not applied and transparency is dropped, as torchvision does.

    Raises:
        InvalidInput: as ``read``, or ``dataset_values_invalid`` if the size differs and ``resize``
            is None.
    """
    fast = _fast_jpeg(data, (height, width, channels))
    if fast is not None:
        return fast
    image = read(data)
    mode = "L" if channels == 1 else "RGB"
    if image.mode != mode:
        image = image.convert(mode)
    if image.size != (width, height):
        if resize is None:
            raise InvalidInput(
                "dataset_values_invalid",
                f"an image is {image.height}x{image.width}, preprocessing says {height}x{width} "
                "and no resize",
            )
        image = image.resize((width, height), _FILTERS[resize])
    return _to_array(image)


def decode(
    cells: Sequence[bytes], *, height: int, width: int, channels: int, resize: Resize | None
) -> Pixels:
    """Decode many images to uint8[N, channels, height, width].

    Raises:
        InvalidInput: as ``pixels``.
    """
    out = np.empty((len(cells), channels, height, width), dtype=np.uint8)

    def fill(start: int) -> None:
        for index, cell in enumerate(cells[start : start + CHUNK], start):
            out[index] = pixels(cell, height=height, width=width, channels=channels, resize=resize)

    each(fill, cells)
    return out


def each(work: Callable[[int], None], cells: Sequence[bytes]) -> None:
    """Call ``work`` with the start of each chunk of ``CHUNK`` cells, on threads where it helps.

    Small images spend their time in the interpreter, where threads only stand in each other's way.
    """
    starts = range(0, len(cells), CHUNK)
    if sum(map(len, cells)) < _SMALL * len(cells):
        for start in starts:
            work(start)
        return
    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        for _ in pool.map(work, starts):
            pass


def _fast_jpeg(data: bytes, wanted: tuple[int, int, int] | None = None) -> Pixels | None:
    """Decode a small grey or RGB JPEG without Pillow's own look at it, which costs more.

    None means that Pillow must look: another format, other components, a size that is not
    ``wanted``, or broken bytes, for which Pillow finds the words.
    """
    shape = _jpeg_shape(data) if len(data) < _SMALL else None
    if shape is None or shape[2] not in (1, 3) or shape[0] * shape[1] > MAX_PIXELS:
        return None
    if wanted is not None and shape != wanted:
        return None
    height, width, channels = shape
    mode = "L" if channels == 1 else "RGB"
    try:
        image = Image.frombytes(mode, (width, height), data, "jpeg", mode, "")
    except (ValueError, OSError):
        return None
    return _to_array(image)


def _jpeg_shape(data: bytes) -> tuple[int, int, int] | None:
    """Height, width and components from the frame header of a JPEG, if there is one."""
    at = 2
    while data[:2] == b"\xff\xd8" and at + 10 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4])
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height = int.from_bytes(data[at + 5 : at + 7])
            return height, int.from_bytes(data[at + 7 : at + 9]), data[at + 9]
        at += 2 + max(length, 2)
    return None


def _to_array(image: Image.Image) -> Pixels:
    """Pixels of a grey or RGB image as uint8[channels, height, width]."""
    flat = np.frombuffer(image.tobytes(), dtype=np.uint8)
    return flat.reshape(image.height, image.width, -1).transpose(2, 0, 1)


def _has_known_magic(data: bytes) -> bool:
    return data.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")) or (
        data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    )


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InvalidInput(
            "image_too_large", f"an image has more than {MAX_PIXELS} pixels"
        ) from None
    except Exception:  # noqa: BLE001  # header parsers raise anything on hostile bytes
        raise InvalidInput("image_invalid", "an image can't be read") from None
