"""Networks: every architecture is a name with bounded options, priced before it is built."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torchvision import models

from core import networks, weights
from core.errors import InvalidInput
from core.networks import build, catalogue, expected_shapes, parse

CPU = torch.device("cpu")
TORCHVISION = [f"torchvision/{name}" for name in models.list_models(module=models)]
IMAGE_NETWORKS = {
    "resnet18": {"name": "torchvision/resnet18", "stem": "cifar"},
    "mobilenet": {"name": "torchvision/mobilenet_v3_small"},
    "shufflenet": {"name": "torchvision/shufflenet_v2_x0_5"},
    "squeezenet": {"name": "torchvision/squeezenet1_1"},
    "regnet": {"name": "torchvision/regnet_y_400mf"},
    "efficientnet": {"name": "torchvision/efficientnet_b0"},
    "linear": {"name": "linear", "in_features": 3 * 32 * 32},
    "mlp": {"name": "mlp", "in_features": 3 * 32 * 32, "batch_norm": True, "dropout": 0.1},
    "convnet": {"name": "convnet"},
    "convnet-group": {"name": "convnet", "norm": "group", "widths": [8, 8]},
    "resnet20": {"name": "resnet20"},
    "vit": {"name": "vit", "hidden": 32, "depth": 2, "dropout": 0.1},
}


def config_of(name: str, **options: Any) -> networks.Config:
    sized: dict[str, Any] = {"in_features": 12} if name in {"linear", "mlp"} else {}
    if name == "ensemble":
        sized = {"members": 2, "member": {"name": "resnet20"}, "shard_key": "0123456789abcdef"}
    return parse({"name": name, "num_classes": 7, **sized, **options})


def test_the_shelf_holds_our_own_and_every_classifier_of_torchvision() -> None:
    own = ["convnet", "ensemble", "linear", "mlp", "resnet20", "vit"]
    assert networks.networks.names() == sorted(own + TORCHVISION)
    assert len(TORCHVISION) >= 80


@pytest.mark.parametrize("name", networks.networks.names())
def test_every_network_builds_on_meta_with_the_classes_asked_for(name: str) -> None:
    shapes = expected_shapes(config_of(name))
    assert any(shape[:1] == (7,) for shape, _ in shapes.values())
    assert {dtype for _, dtype in shapes.values()} <= {"F32", "I64"}
    assert not any("aux" in key.lower() for key in shapes)


@pytest.mark.parametrize("raw", IMAGE_NETWORKS.values(), ids=IMAGE_NETWORKS)
def test_a_training_step_changes_every_family(raw: dict[str, Any]) -> None:
    model = build(parse({**raw, "num_classes": 4}), seed=0)
    before = weights.frozen_copy(model)
    logits = model.train()(torch.randn(4, 3, 32, 32).contiguous(memory_format=torch.channels_last))
    assert logits.shape == (4, 4)
    nn.functional.cross_entropy(logits, torch.arange(4)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert not weights.equal(model, before)


@pytest.mark.parametrize("name", ["torchvision/resnet18", "convnet", "vit", "mlp"])
def test_meta_shapes_are_those_of_the_real_network(name: str) -> None:
    state = build(config_of(name)).state_dict()
    expected = {
        key: (tuple(tensor.shape), weights.DTYPE_NAMES[tensor.dtype])
        for key, tensor in state.items()
    }
    assert expected_shapes(config_of(name)) == expected


def test_a_plain_resnet_has_the_tensors_of_torchvision() -> None:
    theirs = models.resnet18(num_classes=7).state_dict()
    shapes = expected_shapes(config_of("torchvision/resnet18"))
    assert {key: shape for key, (shape, _) in shapes.items()} == {
        key: tuple(tensor.shape) for key, tensor in theirs.items()
    }


def test_resnets_take_other_channels_and_a_small_stem() -> None:
    shape = expected_shapes(config_of("torchvision/resnet18", in_channels=1))["conv1.weight"][0]
    assert shape == (64, 1, 7, 7)
    small = config_of("torchvision/resnet18", stem="cifar", in_channels=5)
    assert expected_shapes(small)["conv1.weight"][0] == (64, 5, 3, 3)
    assert isinstance(build(small).get_submodule("maxpool"), nn.Identity)


def test_same_seed_same_weights_and_the_global_generator_stays() -> None:
    config = config_of("mlp")
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second, third = (build(config, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert weights.equal(first, second)
    assert not weights.equal(first, third)


def test_features_and_images_go_into_the_flat_networks() -> None:
    for name in ("linear", "mlp"):
        model = build(config_of(name))
        assert model(torch.randn(2, 12)).shape == (2, 7)
        assert model(torch.randn(2, 3, 2, 2)).shape == (2, 7)


def test_the_vit_has_gradients_per_sample() -> None:
    model = build(parse({"name": "vit", "num_classes": 3, "hidden": 8, "image_size": 8}), seed=0)
    model.eval()
    parameters = dict(model.named_parameters())
    x = torch.randn(3, 3, 8, 8)

    def loss(values: dict[str, torch.Tensor], one: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(model, values, (one[None],)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    model(x).square().sum().backward()
    for name, parameter in parameters.items():
        torch.testing.assert_close(each[name].sum(dim=0), parameter.grad, rtol=1e-4, atol=1e-5)


BAD = {
    "D1": ({"name": "resnet9000"}, "architecture_unknown"),
    "D1-quantised": ({"name": "torchvision/quantized_resnet18"}, "architecture_unknown"),
    "D1-detector": ({"name": "torchvision/fasterrcnn_resnet50_fpn"}, "architecture_unknown"),
    "D2-vit": ({"name": "vit", "hidden": 10**9, "heads": 1}, "architecture_too_large"),
    "D2-mlp": ({"name": "mlp", "in_features": 8, "hidden": [10**9]}, "architecture_too_large"),
    "D2-overflow": (
        {"name": "mlp", "in_features": 2**31 - 1, "hidden": [2**31 - 1]},
        "architecture_too_large",
    ),
    "D5": ({"name": "vit", "hidden": 10, "heads": 4}, "architecture_invalid"),
    "D5-patch": ({"name": "vit", "image_size": 32, "patch_size": 5}, "architecture_invalid"),
}


@pytest.mark.parametrize(("raw", "code"), BAD.values(), ids=BAD)
def test_impossible_networks_are_refused_with_their_code(raw: dict[str, Any], code: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        expected_shapes(parse({"num_classes": 3, **raw}))
    assert caught.value.code == code


OUT_OF_BOUNDS = {
    "D3": {"name": "vit", "depth": 10**6},
    "D3-mlp": {"name": "mlp", "in_features": 8, "hidden": [1] * 10**6},
    "D4-zero": {"name": "mlp", "in_features": 0},
    "D4-negative": {"name": "vit", "hidden": -8},
    "D4-classes": {"name": "resnet20", "num_classes": 0},
    "D6-target": {"name": "vit", "_target_": "os.system"},
    "D6-auto-map": {"name": "torchvision/resnet18", "auto_map": {}},
    "D6-remote": {"name": "torchvision/vgg11", "trust_remote_code": True},
    "no-name": {},
    "name-type": {"name": ["vit"]},
    "stem": {"name": "torchvision/vgg11", "stem": "cifar"},
    "channels": {"name": "torchvision/vgg11", "in_channels": 1},
    "nan": {"name": "vit", "dropout": float("nan")},
}


@pytest.mark.parametrize("raw", OUT_OF_BOUNDS.values(), ids=OUT_OF_BOUNDS)
def test_options_out_of_bounds_are_refused_before_anything_is_built(raw: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        parse({"num_classes": 3, **raw})


def test_the_limit_of_parameters_is_the_callers() -> None:
    config = config_of("linear")
    assert networks.num_parameters(build(config)) == 91
    assert expected_shapes(config, max_parameters=91)
    with pytest.raises(InvalidInput, match="91 parameters"):
        expected_shapes(config, max_parameters=90)


def test_the_catalogue_describes_every_option() -> None:
    entries = {entry["name"]: entry for entry in catalogue()}
    own = [name for name in entries if not name.startswith(("timm/", "transformers/"))]
    assert own == networks.networks.names()
    for entry in entries.values():
        assert entry["summary"].endswith(".")
        assert entry["source"]
        fields = entry["schema"]["properties"]
        assert all("description" in value for key, value in fields.items() if key != "name")
    assert "stem" in entries["torchvision/resnet50"]["schema"]["properties"]
    assert "stem" not in entries["torchvision/vgg11"]["schema"]["properties"]


def test_configurations_survive_json() -> None:
    config = config_of("convnet", widths=[4, 8])
    assert parse(config.model_dump(mode="json")) == config
    assert networks.num_classes(config) == 7
