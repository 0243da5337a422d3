"""Devices and precisions: chosen by name, and put back as they were."""

from __future__ import annotations

import pytest
import torch

from core.determinism import generator, seed_everything
from core.device import autocast, choose, full_precision
from core.errors import InvalidInput

CPU = torch.device("cpu")


def test_auto_takes_cuda_where_there_is_one() -> None:
    assert choose("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose("cpu") == CPU


@pytest.mark.parametrize("name", ["cuda:99", "tpu", "cuda:-1", "cuda:x", "", "cpu:0"])
def test_a_device_that_is_not_there_is_said(name: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        choose(name)
    assert caught.value.code == "device_unavailable"


def test_autocast_lowers_products_only_when_asked() -> None:
    a = torch.ones(2, 2)
    with autocast(CPU, "bf16"):
        assert (a @ a).dtype == torch.bfloat16
    with autocast(CPU, "fp32"):
        assert (a @ a).dtype == torch.float32


def test_full_precision_switches_off_what_lowers_it_and_puts_it_back() -> None:
    a = torch.ones(2, 2)
    torch.set_float32_matmul_precision("high")
    try:
        with autocast(CPU, "bf16"):
            with full_precision():
                assert (a @ a).dtype == torch.float32
                assert torch.get_float32_matmul_precision() == "highest"
                assert not torch.backends.cudnn.allow_tf32
            assert (a @ a).dtype == torch.bfloat16
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("seed", [0, -1, 2**63 - 1, -(2**63)])
def test_any_int64_is_a_seed(seed: int) -> None:
    draws = []
    for _ in range(2):
        seed_everything(seed)
        draws.append((torch.rand(1).item(), torch.rand(1, generator=generator(seed)).item()))
    assert draws[0] == draws[1]
