"""Several safetensors files become the one that would have been saved of all tensors."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from core.errors import InvalidInput
from core.header import read_header
from core.shards import merge

TENSORS = {
    "a.mask": torch.tensor([True, False, True]),
    "a.weight": torch.randn(3, 5, generator=torch.Generator().manual_seed(0)),
    "b.count": torch.tensor(7),
    "b.half": torch.ones(5, dtype=torch.bfloat16),
    "b.weight": torch.arange(4.0),
    "c.bytes": torch.tensor([1, 2, 3], dtype=torch.uint8),
}
SPREAD = {"one": ["c.bytes", "a.weight"], "two": ["a.mask", "b.weight"], "three": ["b.half"]}
SPREAD["three"].append("b.count")
WEIGHT_MAP = {tensor: name for name, tensors in SPREAD.items() for tensor in tensors}


def written(folder: Path, spread: dict[str, list[str]]) -> dict[str, Path]:
    files = {name: folder / f"{name}.safetensors" for name in spread}
    for name, tensors in spread.items():
        save_file({each: TENSORS[each] for each in tensors}, files[name], {"format": "pt"})
    return files


def test_the_merged_file_is_that_of_the_whole(tmp_path: Path) -> None:
    target = tmp_path / "merged"
    digest = merge(written(tmp_path, SPREAD), WEIGHT_MAP, target, total_size=100)
    save_file(TENSORS, tmp_path / "whole")
    assert target.read_bytes() == (tmp_path / "whole").read_bytes()
    assert digest == hashlib.sha256(target.read_bytes()).hexdigest()
    found: dict[str, Tensor] = load_file(target)
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)


def test_how_tensors_were_spread_does_not_show(tmp_path: Path) -> None:
    single = {"one": list(TENSORS)}
    for number, spread in enumerate((SPREAD, single)):
        folder = tmp_path / str(number)
        folder.mkdir()
        names = {tensor: name for name, tensors in spread.items() for tensor in tensors}
        merge(written(folder, spread), names, folder / "merged")
    assert (tmp_path / "0/merged").read_bytes() == (tmp_path / "1/merged").read_bytes()


def test_a_header_lists_tensors_in_the_order_of_their_bytes(tmp_path: Path) -> None:
    (path,) = written(tmp_path, {"one": list(TENSORS)}).values()
    header = read_header(path)
    assert list(header.tensors)[:2] == ["b.count", "a.weight"]
    assert header.start + sum(info.num_bytes for info in header.tensors.values()) == (
        path.stat().st_size
    )


ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "file-missing": ({"without": "three"}, "not those"),
    "file-not-named": ({"weight_map": {"b.half": "one", "b.count": "one"}}, "not those"),
    "in-another-file": ({"weight_map": {"a.mask": "one"}}, "a.mask is in a file"),
    "not-in-the-index": ({"unnamed": "a.mask"}, "a.mask is in a file"),
    "in-no-file": ({"weight_map": {"z": "one"}}, "z is in none"),
    "twice": ({"spread": {"two": ["a.mask", "b.weight", "a.weight"]}}, "a.weight is in"),
    "total": ({"total_size": 101}, "100 bytes"),
}


@pytest.mark.parametrize("row", ROWS)
def test_refused(tmp_path: Path, row: str) -> None:
    change, said = ROWS[row]
    files = written(tmp_path, SPREAD | change.get("spread", {}))
    files.pop(change.get("without", ""), None)
    weight_map = WEIGHT_MAP | change.get("weight_map", {})
    weight_map.pop(change.get("unnamed", ""), None)
    with pytest.raises(InvalidInput, match=said) as refused:
        merge(files, weight_map, tmp_path / "merged", total_size=change.get("total_size"))
    assert refused.value.code == "shards_mismatch"
    assert not (tmp_path / "merged").exists()


def test_every_file_is_read_strictly(tmp_path: Path) -> None:
    files = written(tmp_path, SPREAD)
    files["two"].write_bytes(files["two"].read_bytes() + b"more")
    with pytest.raises(InvalidInput) as refused:
        merge(files, WEIGHT_MAP, tmp_path / "merged")
    assert refused.value.code == "safetensors_trailing_data"
