"""Weights: strict loading, stable digests, copies that share nothing."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from core import weights
from core.errors import InvalidInput


def small(seed: int = 0, width: int = 3) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Linear(width, 2))


def test_save_then_load_gives_bit_identical_weights(tmp_path: Path) -> None:
    model, other = small(0), small(1)
    weights.save(model, tmp_path / "a.safetensors")
    assert not weights.equal(model, other)
    weights.load(tmp_path / "a.safetensors", other)
    assert weights.equal(model, other)


def test_digest_is_that_of_the_file_whatever_the_memory_format(tmp_path: Path) -> None:
    model = small()
    digest = weights.save(model, tmp_path / "a.safetensors")
    assert digest == hashlib.sha256((tmp_path / "a.safetensors").read_bytes()).hexdigest()
    assert digest == weights.digest(model)
    model.to(memory_format=torch.channels_last)
    assert digest == weights.digest(model)
    model[2].bias.data[0] += 1
    assert digest != weights.digest(model)


def test_tied_weights_are_written_under_both_names(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    weights.save(model, tmp_path / "a.safetensors")
    saved = load_file(tmp_path / "a.safetensors")
    assert torch.equal(saved["0.weight"], saved["1.weight"])


def test_loading_refuses_other_names_shapes_and_dtypes(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    state = small().state_dict()
    without_buffer = {k: v for k, v in state.items() if k != "1.running_mean"}
    cases = {
        "model_keys_mismatch": [without_buffer, {**state, "extra": torch.ones(1)}],
        "model_shape_mismatch": [{**state, "2.bias": torch.ones(3)}],
        "model_dtype_mismatch": [{**state, "2.bias": torch.ones(2, dtype=torch.float16)}],
    }
    for code, states in cases.items():
        for bad in states:
            save_file(bad, path)
            model = small(1)
            with pytest.raises(InvalidInput) as caught:
                weights.load(path, model)
            assert caught.value.code == code
            assert weights.equal(model, small(1))


def test_loading_refuses_what_is_not_safetensors(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"nothing of the kind")
    with pytest.raises(InvalidInput, match="not safetensors"):
        weights.load(tmp_path / "a", small())


def test_a_frozen_copy_shares_no_storage_and_learns_nothing() -> None:
    model = small().train()
    copied = weights.frozen_copy(model)
    assert weights.equal(model, copied)
    assert not copied.training
    assert not any(p.requires_grad for p in copied.parameters())
    pointers = {t.data_ptr() for t in model.state_dict().values()}
    assert pointers.isdisjoint(t.data_ptr() for t in copied.state_dict().values())
    assert model.training


def test_equal_sees_buffers_and_tells_nan_from_nan() -> None:
    model, other = small(), small()
    other[1].running_mean[0] = 1.0
    assert not weights.equal(model, other)
    model[1].running_mean[0] = other[1].running_mean[0] = float("nan")
    assert weights.equal(model, other)


def test_non_finite_names_parameters_and_buffers() -> None:
    model = small()
    assert weights.non_finite(model) == []
    model[1].running_var[0] = float("inf")
    model[2].bias.data[0] = float("nan")
    assert weights.non_finite(model) == ["1.running_var", "2.bias"]
