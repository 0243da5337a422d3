"""Rows C of the bad-input corpus, and what becomes of checkpoints that are as they should be."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from core import opcodes
from core.convert import convert
from core.errors import InvalidInput
from core.formats import kind

from . import checkpoints as made

CANARY = Path("canary")
Made = Callable[[Path], bytes]


def on(canary: Path, wrap: Callable[[Any], bytes]) -> bytes:
    return wrap(made.touching(canary))


def with_tensor(tensor: torch.Tensor) -> Made:
    return lambda _: made.saved({"1.weight": tensor})


def named(name: str) -> Made:
    return lambda _: made.archive(b"\x80\x02}.", (name, b"x"))


def quantized() -> torch.Tensor:
    with pytest.warns(UserWarning, match="deprecated"):
        return torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8)


GOOD = made.archive()
SIZES = b"\x04\0\0\0\x04\0\0\0"
ENTRY = b"PK\x01\x02\x14\x03\x14\0\0"
ROWS: dict[str, tuple[Made, str]] = {
    "C1-reduce": (lambda canary: on(canary, made.saved), "unsafe_pickle_global"),
    "C1-in-a-state-dict": (
        lambda canary: made.saved({**made.state(), "x": made.touching(canary)}),
        "unsafe_pickle_global",
    ),
    "C2-bare": (lambda canary: on(canary, made.bare), "unsafe_pickle_global"),
    "C2-bare-protocol-2": (
        lambda canary: on(canary, lambda what: made.bare(what, 2)),
        "unsafe_pickle_global",
    ),
    "C2-bare-and-harmless": (lambda _: made.bare({"a": 1}, 2), "pickle_invalid"),
    "C3-weights-only-bypass": (
        lambda _: made.repickled(b"ccollections\nOrderedDict\n", b"cposix\nsystem\n"),
        "unsafe_pickle_global",
    ),
    "C3-reduce-on-build": (
        lambda canary: made.archive(
            b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(cposix\nsystem\nX\x01\0\0\0xtR."
        ),
        "unsafe_pickle_global",
    ),
    "C4-item-on-a-list": (lambda _: made.item_on_a_list(), "pickle_invalid"),
    "C5-short-storage": (lambda _: made.short_storage(), "pickle_invalid"),
    "C6-expand": (with_tensor(torch.zeros(1).expand(10**12)), "tensor_size_bomb"),
    "C6-small-expand": (with_tensor(torch.zeros(1).expand(2, 4)), "tensor_size_bomb"),
    "C7-deflated": (
        lambda _: made.archive(b"\x80\x02}.", ("archive/data/0", bytes(1 << 24)), compressed=True),
        "archive_compressed_member",
    ),
    "C8-overlap": (lambda _: made.overlapping(), "archive_invalid"),
    "C9-checksum": (
        lambda _: made.patched(GOOD, b"\x80\x02}.", b"\x80\x02].", 1),
        "archive_invalid",
    ),
    "C9-sizes": (
        lambda _: made.patched(GOOD, SIZES, SIZES[:4] + b"\x05\0\0\0"),
        "archive_invalid",
    ),
    "C9-encrypted": (
        lambda _: made.patched(GOOD, ENTRY, ENTRY[:-1] + b"\x01"),
        "archive_invalid",
    ),
    "C9-zip64": (
        lambda _: made.patched(made.saved(made.state()), b"PK\x06\x06", b"PK\x06\x05"),
        "archive_invalid",
    ),
    "C9-two-names": (
        lambda _: made.patched(GOOD, b"archive/data.pkl", b"archive/data.pkx", 1),
        "archive_invalid",
    ),
    "C9-bytes-in-front": (lambda _: b"PK\x03\x04" + bytes(60) + GOOD, "archive_invalid"),
    "C9-comment": (lambda _: GOOD[:-2] + b"\x05\0hello", "archive_invalid"),
    "C10-200000-members": (lambda _: made.crowded(200_000), "archive_too_many_members"),
    "C11-parent": (named("archive/../../evil"), "archive_path_traversal"),
    "C11-backslash": (named("archive\\..\\evil"), "archive_path_traversal"),
    "C11-absolute": (named("/etc/evil"), "archive_path_traversal"),
    "C11-drive": (named("C:/evil"), "archive_path_traversal"),
    "C11-link": (lambda _: made.linked(), "archive_path_traversal"),
    "C12-duplicate": (
        lambda _: made.patched(
            made.archive(b"\x80\x02}.", ("archive/data/0", b"a"), ("archive/data/1", b"b")),
            b"archive/data/1",
            b"archive/data/0",
        ),
        "archive_duplicate_member",
    ),
    "C13-nested": (named("archive/inner.zip"), "archive_invalid"),
    "C13-zip-of-a-checkpoint": (
        lambda _: made.archive(None, ("model.pt", made.saved(made.state()))),
        "archive_invalid",
    ),
    "C14-torchscript": (lambda _: made.torchscript(), "torchscript_not_supported"),
    "C15-exported": (lambda _: made.exported(), "exported_program_not_supported"),
    "C16-package": (lambda _: made.packaged(), "torch_package_not_supported"),
    "C17-module": (lambda _: made.whole_module(), "unsafe_pickle_global"),
    "C18-sparse": (with_tensor(torch.eye(3).to_sparse()), "tensor_kind_unsupported"),
    "C18-complex": (
        with_tensor(torch.zeros(2, dtype=torch.complex64)),
        "tensor_kind_unsupported",
    ),
    "C18-meta": (with_tensor(torch.zeros(2, device="meta")), "tensor_kind_unsupported"),
    "C18-float8": (
        with_tensor(torch.zeros(2).to(torch.float8_e5m2)),
        "tensor_kind_unsupported",
    ),
    "C18-quantized": (lambda _: made.saved({"a": quantized()}), "tensor_kind_unsupported"),
    "C19-aliases": (lambda _: made.aliases(1000), "tensor_alias_limit"),
    "C20-keys": (lambda _: made.saved({1: torch.zeros(1)}), "state_dict_invalid"),
    "C20-depth": (lambda _: made.nested(1000), "state_dict_invalid"),
    "C20-no-mapping": (lambda _: made.saved([torch.zeros(1)]), "state_dict_invalid"),
    "C20-two-wrappers": (
        lambda _: made.saved({"model": made.state(), "state_dict": made.state()}),
        "state_dict_invalid",
    ),
    "C20-mixed": (lambda _: made.saved({**made.state(), "epoch": 3}), "state_dict_invalid"),
    "C20-empty": (lambda _: made.saved({}), "state_dict_invalid"),
    "C21-stack-global": (
        lambda _: made.archive(b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x01x\x85R."),
        "unsafe_pickle_global",
    ),
    "C21-pop": (
        lambda _: made.archive(b"\x80\x02ccollections\nOrderedDict\n0cposix\nsystem\n."),
        "unsafe_pickle_global",
    ),
    "C21-after-the-end": (
        lambda _: made.archive(b"\x80\x02}.cposix\nsystem\n(X\x01\0\0\0xtR."),
        "pickle_invalid",
    ),
    "C21-protocol-4": (lambda _: made.saved(made.state(), pickle_protocol=4), "pickle_invalid"),
    "C21-class": (lambda _: made.archive(b"\x80\x02ctorch\nSize\n)\x81."), "unsafe_pickle_global"),
    "C22-opcodes": (lambda _: made.many_opcodes(10_000_000), "pickle_budget_exceeded"),
    "C22-no-stop": (lambda _: made.archive(b"\x80\x02}"), "pickle_budget_exceeded"),
    "C22-memo": (
        lambda _: made.archive(b"\x80\x02}r\xff\xff\xff\x7f."),
        "pickle_budget_exceeded",
    ),
    "C22-17-MiB": (
        lambda _: made.archive(b"\x80\x02" + b"N0" * (17 << 19) + b"."),
        "pickle_budget_exceeded",
    ),
    "C23-truncated": (lambda _: made.saved(made.state())[:-100], "archive_invalid"),
    "C23-header-only": (lambda _: b"PK\x03\x04", "archive_invalid"),
    "C23-empty-archive": (lambda _: b"PK\x05\x06" + bytes(18), "archive_invalid"),
    "C24-legacy": (
        lambda _: made.saved(made.state(), _use_new_zipfile_serialization=False),
        "legacy_torch_format",
    ),
    "C24-tar": (
        lambda _: b"storages".ljust(257, b"\0") + b"ustar".ljust(255, b"\0"),
        "legacy_torch_format",
    ),
    "B29-keys": (lambda _: made.saved({"w": torch.zeros(1)}), "model_keys_mismatch"),
    "B30-shape": (
        lambda _: made.saved({**made.state(), "1.bias": torch.zeros(3)}),
        "model_shape_mismatch",
    ),
    "B30-dtype": (
        lambda _: made.saved({**made.state(), "1.bias": torch.zeros(2).half()}),
        "model_dtype_mismatch",
    ),
}  # fmt: skip


def run(tmp_path: Path, content: bytes) -> dict[str, Any]:
    source, out = tmp_path / "upload", tmp_path / "out"
    source.write_bytes(content)
    out.mkdir()
    return convert(out=out, source=source, architecture=made.ARCHITECTURE, max_parameters=1_000_000)


@pytest.mark.parametrize(("make", "code"), ROWS.values(), ids=ROWS)
def test_bad_checkpoint_is_refused_with_its_code(
    tmp_path: Path, make: Made, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.opcodes.MAX_OPCODES", 200_000)
    canary = tmp_path / "canary"
    content = make(canary)
    started = time.process_time()
    with pytest.raises(InvalidInput) as caught:
        run(tmp_path, content)
    assert caught.value.code == code
    assert time.process_time() - started < 10
    assert not canary.exists()
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda canary: on(canary, made.saved), "posix.system"),
        (lambda canary: on(canary, made.bare), "posix.system"),
        (lambda _: made.whole_module(), "torch.nn.modules.linear.Linear"),
        (lambda _: made.archive(b"\x80\x02cos\x1b\n\x07x\n."), "os?.?x"),
    ],
)
def test_what_would_be_called_is_named(tmp_path: Path, make: Made, name: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        run(tmp_path, make(tmp_path / "canary"))
    assert f"would call {name};" in caught.value.detail


WRAPPED: dict[str, tuple[Callable[[dict[str, torch.Tensor]], Any], list[str], str]] = {
    "bare": (lambda state: state, [], ""),
    "parameters": (lambda state: {k: nn.Parameter(v) for k, v in state.items()}, [], ""),
    "state_dict": (
        lambda state: {"state_dict": state, "epoch": 3, "best": 0.5},
        ["state_dict"],
        "",
    ),
    "model": (
        lambda state: {"model": state, "optimizer": {"state": {0: {"step": torch.zeros(1)}}}},
        ["model"],
        "",
    ),
    "twice": (lambda state: {"model": {"state_dict": state}}, ["model", "state_dict"], ""),
    "parallel": (lambda state: {f"module.{k}": v for k, v in state.items()}, [], "module."),
    "compiled": (
        lambda state: {"model": {f"module._orig_mod.{k}": v for k, v in state.items()}},
        ["model"],
        "module._orig_mod.",
    ),
    "transposed": (
        lambda state: {k: v.t().contiguous().t() if v.ndim > 1 else v for k, v in state.items()},
        [],
        "",
    ),
    "slices-of-one": (
        lambda state: {
            "1.weight": torch.cat([state["1.weight"].ravel(), state["1.bias"]])[:8].view(2, 4),
            "1.bias": torch.cat([state["1.weight"].ravel(), state["1.bias"]])[8:],
        },
        [],
        "",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("wrap", "wrappers", "prefix"), WRAPPED.values(), ids=WRAPPED)
def test_a_checkpoint_becomes_the_state_dict_it_holds(
    tmp_path: Path, wrap: Callable[[Any], Any], wrappers: list[str], prefix: str
) -> None:
    result = run(tmp_path, made.saved(wrap(made.state())))
    assert (result["unwrapped"], result["prefix"]) == (wrappers, prefix)
    found = load_file(tmp_path / "out" / result["weights"])
    assert found.keys() == made.state().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in made.state().items())


def test_what_is_packed_anew_is_refused_for_its_pickle_alone(tmp_path: Path) -> None:
    found = run(tmp_path, made.repickled(b"OrderedDict", b"OrderedDict"))
    assert load_file(tmp_path / "out" / found["weights"]).keys() == made.state().keys()


def test_a_pickle_that_breaks_off_is_not_said_to_be_too_long() -> None:
    with pytest.raises(InvalidInput, match="breaks off") as caught:
        opcodes.scan(b"\x80\x02}")
    assert caught.value.code == "pickle_budget_exceeded"


def test_tied_tensors_are_written_for_each_name(tmp_path: Path) -> None:
    architecture = {"name": "mlp", "in_features": 2, "hidden": (2,), "num_classes": 2}
    one = torch.ones(2, 2)
    (tmp_path / "up").write_bytes(
        made.saved({"1.weight": one, "3.weight": one, "1.bias": one[0], "3.bias": torch.zeros(2)})
    )
    result = convert(
        out=tmp_path, source=tmp_path / "up", architecture=architecture, max_parameters=99
    )
    assert torch.equal(load_file(tmp_path / result["weights"])["3.weight"], one)


@pytest.mark.parametrize(
    ("content", "expected"),
    [(made.saved({}), "pytorch"), (made.bare(1), "pytorch"), (b"", "safetensors")],
)
def test_the_kind_of_a_file(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "f").write_bytes(content)
    assert kind(tmp_path / "f") == expected
