"""What a pickle would do, read without doing it: opcodes and globals against a short list.

torch's own unpickler of weights comes after this and has the last word. This list is shorter, has
a budget, and finds the words for a refusal.
"""

from __future__ import annotations

import pickletools
import re
from collections import deque
from collections.abc import Iterator
from typing import NoReturn

from .errors import InvalidInput

MAX_OPCODES = 2_000_000
MAX_MEMO = 1_000_000

_OPCODES = frozenset(
    (
        *("PROTO", "STOP", "MARK", "GLOBAL", "REDUCE", "BUILD", "BINPERSID"),
        *("BINGET", "LONG_BINGET", "BINPUT", "LONG_BINPUT"),
        *("EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_LIST", "APPEND", "APPENDS"),
        *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
        *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1"),
        *("BINFLOAT", "BINUNICODE"),
    )
)
_STORAGES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
_DTYPES = (
    *("float64", "float32", "float16", "bfloat16"),
    *("int64", "int32", "int16", "int8", "uint8", "bool"),
)
_GLOBALS = frozenset(
    (
        "collections OrderedDict",
        "collections Counter",
        "torch._utils _rebuild_tensor",
        "torch._utils _rebuild_tensor_v2",
        "torch._utils _rebuild_parameter",
        "torch Size",
        "torch device",
        *(f"torch {name}Storage" for name in _STORAGES),
        *(f"torch {name}" for name in _DTYPES),
    )
)
_OTHER_KINDS = ("torch._utils _rebuild_", "torch._tensor _rebuild_", "torch.sparse")
_OTHER_STORAGES = ("Complex", "QInt", "QUInt", "UInt", "Float8", "Untyped", "Typed")
_MAKERS = ("OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4")
_TEXTS = ("UNICODE", "STRING")
_SHOWN = 120


def scan(data: bytes) -> None:
    """Refuse a pickle that does more than make tensors and plain values.

    Raises:
        InvalidInput: ``unsafe_pickle_global`` with the name, ``tensor_kind_unsupported``,
            ``pickle_budget_exceeded`` or ``pickle_invalid``.
    """
    texts: deque[str] = deque(maxlen=2)
    foreign: str | None = None
    end = -1
    for name, argument, position in _steps(data):
        if name in ("GLOBAL", "INST"):
            _check_global(str(argument))
        elif name == "STACK_GLOBAL":
            # torch does not take it, whatever it names; the two texts before are a good guess.
            _check_global(" ".join(texts))
        elif name in _MAKERS:
            _unsafe("a class of its own")
        if name not in _OPCODES:
            # Read on: what the pickle is good for is the better answer.
            foreign = foreign or name
        if any(kind in name for kind in _TEXTS):
            texts.append(str(argument))
        end = position
    if foreign is not None:
        raise InvalidInput(
            "pickle_invalid", f"torch.save does not write {foreign} with its own pickle_protocol"
        )
    if end + 1 != len(data):
        raise InvalidInput("pickle_invalid", "the pickle goes on after its end")


def _steps(data: bytes) -> Iterator[tuple[str, object, int]]:
    """Opcodes with their arguments and positions, up to STOP, within the budget."""
    try:
        for count, (opcode, argument, position) in enumerate(pickletools.genops(data)):
            if count >= MAX_OPCODES or ("PUT" in opcode.name and _is_beyond_memo(argument)):
                _over_budget()
            assert position is not None, "bytes have positions"
            yield opcode.name, argument, position
    except (ValueError, OverflowError) as error:
        if "exhausted before seeing STOP" in str(error):
            raise InvalidInput(
                "pickle_budget_exceeded", "the pickle breaks off before its end"
            ) from None
        raise InvalidInput("pickle_invalid", "the pickle can't be read") from None


def _is_beyond_memo(argument: object) -> bool:
    return not isinstance(argument, int) or argument > MAX_MEMO


def _check_global(name: str) -> None:
    if name in _GLOBALS:
        return
    module, _, attribute = name.partition(" ")
    is_storage = module == "torch" and attribute.endswith("Storage")
    if name.startswith(_OTHER_KINDS) or (is_storage and attribute.startswith(_OTHER_STORAGES)):
        raise InvalidInput(
            "tensor_kind_unsupported",
            "only dense tensors of real numbers are taken: none that are sparse, quantized, "
            "complex, on the meta device or of a class of their own",
        )
    _unsafe(f"{module}.{attribute}")


def _unsafe(name: str) -> NoReturn:
    shown = re.sub(r"[^!-~ ]", "?", name)[:_SHOWN]
    raise InvalidInput(
        "unsafe_pickle_global",
        f"the file would call {shown}; send the state dict alone: tensors and plain values, "
        "best as safetensors",
    )


def _over_budget() -> NoReturn:
    raise InvalidInput(
        "pickle_budget_exceeded",
        f"the pickle does not end within {MAX_OPCODES} steps and {MAX_MEMO} remembered values",
    )
