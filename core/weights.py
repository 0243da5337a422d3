"""State dicts as safetensors files: load, save, digest, copy, compare.

The bytes of a saved model depend on its names, shapes, dtypes and values alone, so the digest of
the file is the digest of the weights.
"""

from __future__ import annotations

import copy
import hashlib
import os
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from .errors import InvalidInput

DTYPE_NAMES: dict[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Names that safetensors gives to dtypes."""

_CHUNK = 1 << 20


def load(path: Path, model: nn.Module) -> None:
    """Copy the tensors of a safetensors file into ``model``; names, shapes and dtypes must match.

    Nothing is copied unless everything matches. Buffers count as well as parameters.

    Raises:
        InvalidInput: ``model_keys_mismatch``, ``model_shape_mismatch``, ``model_dtype_mismatch``,
            or ``safetensors_header_invalid`` if the file is not safetensors.
    """
    state = model.state_dict()
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            _check_names(set(file.keys()), set(state))
            tensors = {name: file.get_tensor(name) for name in state}
    except safetensors.SafetensorError:
        raise InvalidInput("safetensors_header_invalid", "the file is not safetensors") from None
    for name, tensor in tensors.items():
        _check_tensor(name, tensor, state[name])
    with torch.no_grad():
        for name, tensor in tensors.items():
            state[name].copy_(tensor)


def save(model: nn.Module, path: Path) -> str:
    """Write parameters and buffers as safetensors, flush them to disk, return the sha256 in hex."""
    safetensors.torch.save_file(_portable_state(model), path)
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        os.fsync(file.fileno())
        while chunk := file.read(_CHUNK):
            sha256.update(chunk)
    return sha256.hexdigest()


def digest(model: nn.Module) -> str:
    """Return the sha256 in hex of the file that ``save`` would write."""
    return hashlib.sha256(safetensors.torch.save(_portable_state(model))).hexdigest()


def frozen_copy(model: nn.Module) -> nn.Module:
    """Return a deep copy in eval mode that needs no gradients and shares no storage."""
    return copy.deepcopy(model).eval().requires_grad_(False)


def equal(a: nn.Module, b: nn.Module) -> bool:
    """Whether two models hold the same names with bit-identical tensors, buffers included."""
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(
        _identical(tensor, right[name]) for name, tensor in left.items()
    )


def non_finite(model: nn.Module) -> list[str]:
    """Names of the parameters and buffers that hold NaN or infinity."""
    return [
        name
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
    ]


def _portable_state(model: nn.Module) -> dict[str, Tensor]:
    """Contiguous CPU tensors; tied ones are written once per name."""
    state: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict().items():
        portable = tensor.detach().to("cpu").contiguous()
        storage = portable.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != portable.nbytes:
            portable = portable.clone()
        seen.add(portable.untyped_storage().data_ptr())
        state[name] = portable
    return state


def _identical(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    a, b = (t.detach().cpu().contiguous().flatten().view(torch.uint8) for t in (a, b))
    return torch.equal(a, b)


def _check_names(found: set[str], expected: set[str]) -> None:
    if found != expected:
        raise InvalidInput(
            "model_keys_mismatch",
            f"{len(expected - found)} tensors of the network are missing in the file, "
            f"{len(found - expected)} tensors of the file are unknown to the network",
        )


def _check_tensor(name: str, found: Tensor, expected: Tensor) -> None:
    if found.shape != expected.shape:
        raise InvalidInput(
            "model_shape_mismatch",
            f"{name} has shape {list(found.shape)}, the network wants {list(expected.shape)}",
        )
    if found.dtype != expected.dtype:
        raise InvalidInput(
            "model_dtype_mismatch",
            f"{name} has dtype {_dtype_name(found)}, the network wants {_dtype_name(expected)}",
        )


def _dtype_name(tensor: Tensor) -> str:
    return DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype))
