"""What ``torch.save`` wrote becomes safetensors, or is refused with a code. One way, no way back.

The archive is checked first (``core.archive``), then its pickle is read without being run
(``core.opcodes``); only then does torch's unpickler of weights see it. This runs in the sandboxed
runner and nowhere else.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from . import archive, fit, formats, networks, opcodes
from .errors import InvalidInput
from .header import ITEM_BYTES, TensorInfo, read_header
from .ladder import WEIGHTS_FILE
from .report import Report, no_report
from .weights import DTYPE_NAMES

MAX_ALIASING = 2
"""Tensors may hold so many times the bytes of the storages that they look at."""

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "params", "weights")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")
_MAX_WRAPPERS = 3

Tensors = dict[str, torch.Tensor]


def convert(
    *,
    out: Path,
    source: Path,
    architecture: dict[str, Any],
    max_parameters: int,
    report: Report = no_report,
) -> dict[str, Any]:
    """Write the state dict of ``source`` as ``model.safetensors``.

    Wrapped state dicts (``{"state_dict": ...}``) are unwrapped, and prefixes that all names share
    (``module.``) are taken off where the network's own names have none.

    Args:
        out: an existing folder.
        source: the upload.
        architecture: of the network that the tensors must fit.
        max_parameters: refuse a larger network.
        report: told about progress as phase ``converting``.

    Returns:
        file name and digest of the weights, number of tensors, and what was taken off.

    Raises:
        InvalidInput: with a code of ``archive_*``, ``pickle_*``, ``tensor_*`` or ``model_*``;
            ``unsafe_pickle_global``, ``state_dict_invalid`` or a code of ``formats.UNSUPPORTED``.
    """
    report("converting", 0.0, None, None, {})
    expected = networks.expected_shapes(networks.parse(architecture), max_parameters)
    formats.kind(source)
    if not formats.is_zip(source):
        _refuse_bare(source)
    contents = archive.check(source)
    opcodes.scan(contents.pickle)
    report("converting", 0.2, None, None, {})
    state, wrappers = _unwrap(_load(source))
    _check_kinds(state, contents.sizes)
    state, prefix = _without_prefix(state, set(expected))
    fit.check({name: _info(tensor) for name, tensor in state.items()}, expected)
    report("converting", 0.5, None, None, {})
    weights = out / WEIGHTS_FILE
    safetensors.torch.save_file(_separate(state), weights)
    read_header(weights)
    report("converting", 1.0, 0.0, None, {})
    return {
        "weights": weights.name,
        "digest": _digest(weights),
        "num_tensors": len(state),
        "unwrapped": wrappers,
        "prefix": prefix,
    }


def _refuse_bare(source: Path) -> None:
    """Refuse a pickle outside an archive, by what it would call if there is such a thing."""
    if source.stat().st_size > archive.MAX_PICKLE:
        raise InvalidInput(
            "pickle_budget_exceeded", f"the pickle exceeds {archive.MAX_PICKLE} bytes"
        )
    opcodes.scan(source.read_bytes())
    raise InvalidInput("pickle_invalid", "the file is a bare pickle, not what torch.save writes")


def _load(source: Path) -> Any:
    try:
        return torch.load(  # noqa: TID251  # the one place, behind the checks above
            source, weights_only=True, mmap=True, map_location="cpu"
        )
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001  # an unpickler raises anything on hostile bytes
        if "allocate memory" in str(error):
            raise MemoryError from None
        raise InvalidInput(
            "pickle_invalid", "torch can't read the file: its contents contradict each other"
        ) from None


def _unwrap(found: Any) -> tuple[Tensors, list[str]]:
    """Return the state dict inside ``found``, and the names under which it lay."""
    wrappers: list[str] = []
    while len(wrappers) <= _MAX_WRAPPERS:
        if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
            break
        if found and all(isinstance(value, torch.Tensor) for value in found.values()):
            return dict(found), wrappers
        inside = [name for name in _WRAPPERS if isinstance(found.get(name), Mapping)]
        if len(inside) != 1:
            break
        found = found[inside[0]]
        wrappers.append(inside[0])
    raise InvalidInput(
        "state_dict_invalid",
        "the file holds no state dict: one mapping from names to tensors, bare or under one of "
        + ", ".join(_WRAPPERS),
    )


def _check_kinds(state: Tensors, sizes: Counter[int]) -> None:
    """Refuse tensors that claim more than the file holds, before any of them is touched."""
    storages: dict[int, int] = {}
    claimed = 0
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise InvalidInput("tensor_kind_unsupported", f"{_shown(name)} is not a dense tensor")
        if tensor.dtype not in DTYPE_NAMES:
            raise InvalidInput(
                "tensor_kind_unsupported", f"{_shown(name)} is of type {tensor.dtype}"
            )
        storage = tensor.untyped_storage()
        num_bytes = tensor.numel() * tensor.itemsize
        if num_bytes > storage.nbytes():
            raise InvalidInput(
                "tensor_size_bomb", f"{_shown(name)} claims more elements than the file holds"
            )
        storages[storage.data_ptr()] = storage.nbytes()
        claimed += num_bytes
    if Counter(num_bytes for num_bytes in storages.values() if num_bytes) - sizes:
        # A mapped storage may run on into the next member, and torch does not mind.
        raise InvalidInput("pickle_invalid", "a storage has another size than the pickle says")
    if claimed > MAX_ALIASING * sum(storages.values()):
        raise InvalidInput(
            "tensor_alias_limit",
            f"the tensors together are over {MAX_ALIASING} times as large as what they share",
        )


def _without_prefix(state: Tensors, wanted: set[str]) -> tuple[Tensors, str]:
    """Take off prefixes that all names share and the network's names have not."""
    taken = ""
    while not wanted & state.keys():
        shared = [prefix for prefix in _PREFIXES if all(n.startswith(prefix) for n in state)]
        if not shared:
            break
        state = {name.removeprefix(shared[0]): tensor for name, tensor in state.items()}
        taken += shared[0]
    return state, taken


def _separate(state: Tensors) -> Tensors:
    """Contiguous tensors of which no two share their bytes."""
    separate: Tensors = {}
    seen: set[int] = set()
    for name, tensor in state.items():
        portable = tensor.detach().contiguous()
        storage = portable.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != portable.nbytes:
            portable = portable.clone()
        seen.add(portable.untyped_storage().data_ptr())
        separate[name] = portable
    return separate


def _info(tensor: torch.Tensor) -> TensorInfo:
    dtype = DTYPE_NAMES[tensor.dtype]
    assert tensor.itemsize == ITEM_BYTES[dtype]
    return TensorInfo(dtype, tuple(tensor.shape))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _shown(name: str) -> str:
    return "".join(c if " " <= c <= "~" else "?" for c in name[:64])
