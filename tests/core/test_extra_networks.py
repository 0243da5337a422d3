"""Networks of optional packages: from names and configs alone, without a byte from elsewhere."""

from __future__ import annotations

import importlib.util
import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import nn

from core import fit, networks, weights
from core.errors import InvalidInput
from core.header import read_header
from core.networks import _extras, build, expected_shapes, parse
from core.persample import add_general

needs_timm = pytest.mark.skipif(
    importlib.util.find_spec("timm") is None, reason="the extra timm is not installed"
)
needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None,
    reason="the extra transformers is not installed",
)
TINY_VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 8,
    "patch_size": 4,
    "num_channels": 1,
}
TINY_RESNET = {
    "num_channels": 1,
    "embedding_size": 8,
    "hidden_sizes": [8, 16],
    "depths": [1, 1],
    "layer_type": "basic",
}
SMALL: dict[str, tuple[dict[str, Any], int]] = {
    "timm-resnet": ({"name": "timm/test_resnet", "in_channels": 1}, 32),
    "timm-vit": (
        {
            "name": "timm/vit_tiny_patch16_224",
            "in_channels": 1,
            "image_size": 8,
            "drop_path_rate": 0.1,
            "options": {"patch_size": 4, "embed_dim": 16, "num_heads": 2, "depth": 2},
        },
        8,
    ),
    "vit": ({"name": "transformers/vit", "config": TINY_VIT}, 8),
    "resnet": ({"name": "transformers/resnet", "config": TINY_RESNET}, 32),
}
small = pytest.mark.parametrize(
    "form",
    [
        pytest.param(name, marks=needs_timm if name.startswith("timm") else needs_transformers)
        for name in SMALL
    ],
)


@pytest.fixture
def unplugged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail whoever opens a connection."""

    def refuse(*_: object) -> None:
        pytest.fail("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@small
@pytest.mark.usefixtures("unplugged")
def test_a_training_step_changes_it(form: str) -> None:
    raw, side = SMALL[form]
    config = parse({**raw, "num_classes": 4})
    model = build(config, seed=0)
    before = weights.frozen_copy(model)
    inputs = torch.randn(4, 1, side, side).contiguous(memory_format=torch.channels_last)
    logits = model.train()(inputs)
    assert logits.shape == (4, 4)
    nn.functional.cross_entropy(logits, torch.arange(4)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert not weights.equal(model, before)
    assert parse(config.model_dump(mode="json")) == config
    assert weights.equal(build(config, seed=0), before)


@small
def test_gradients_per_record_sum_up(form: str) -> None:
    raw, side = SMALL[form]
    model = build(parse({**raw, "num_classes": 3}), seed=0).eval()
    x, y = torch.randn(3, 1, side, side), torch.tensor([0, 1, 2])
    found: dict[int, torch.Tensor] = {}

    def losses(logits: torch.Tensor, labels: torch.Tensor) -> list[torch.Tensor]:
        return [nn.functional.cross_entropy(logits, labels, reduction="none")]

    def add(parameter: torch.Tensor, values: torch.Tensor, _: Any) -> None:
        found[id(parameter)] = found.get(id(parameter), 0) + values  # type: ignore[operator]

    add_general(model, x, y, losses=losses, add=add, of=lambda gradient: gradient)
    losses(model(x), y)[0].sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            found[id(parameter)], parameter.grad, rtol=1e-3, atol=1e-5, msg=name
        )


@needs_transformers
def test_what_save_pretrained_wrote_fits_and_is_written_again(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTForImageClassification

    theirs = ViTForImageClassification(ViTConfig(**TINY_VIT, num_labels=5))
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    config = parse({"name": "transformers/vit", "num_classes": 5, "config": TINY_VIT})
    fit.check(read_header(path).tensors, expected_shapes(config))
    ours = build(config)
    weights.load(path, ours)
    x = torch.randn(2, 1, 8, 8)
    with torch.inference_mode():
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x).logits)
    weights.save(ours, tmp_path / "again")
    assert load_file(tmp_path / "again").keys() == load_file(path).keys()
    ours.load_state_dict(build(config, seed=1).state_dict())
    assert weights.equal(ours, build(config, seed=1))


@needs_timm
def test_timms_own_tensors_fit(tmp_path: Path) -> None:
    import timm

    theirs = timm.create_model("test_resnet", num_classes=5, in_chans=1)
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    config = parse({"name": "timm/test_resnet", "num_classes": 5, "in_channels": 1})
    ours = build(config)
    weights.load(tmp_path / "model.safetensors", ours)
    x = torch.randn(2, 1, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


@needs_transformers
def test_a_config_json_as_it_was_saved_is_taken() -> None:
    from transformers import ViTConfig, ViTForImageClassification

    theirs = ViTForImageClassification(ViTConfig(**TINY_VIT, num_labels=3))
    saved = json.loads(theirs.config.to_json_string(use_diff=False))
    saved |= {"architectures": ["ViTForImageClassification"], "_name_or_path": "somewhere"}
    assert saved["output_hidden_states"] is False
    given = parse({"name": "transformers/vit", "num_classes": 3, "config": saved})
    plain = parse({"name": "transformers/vit", "num_classes": 3, "config": TINY_VIT})
    assert given == plain


INVALID: dict[str, dict[str, Any]] = {
    "unknown-key": {"config": {**TINY_VIT, "hiden_size": 8}},
    "D6-auto-map": {"config": {**TINY_VIT, "auto_map": {"AutoModel": "evil--evil.Model"}}},
    "D6-remote": {"config": {**TINY_VIT, "trust_remote_code": True}},
    "D6-attention-kernel": {"config": {**TINY_VIT, "attn_implementation": "owner/kernel"}},
    "other-output": {"config": {**TINY_VIT, "output_hidden_states": True}},
    "quantised": {"config": {**TINY_VIT, "quantization_config": {}}},
    "type": {"config": {**TINY_VIT, "hidden_size": "many"}},
    "other-model": {"config": {**TINY_VIT, "model_type": "bert"}},
    "other-class": {"config": {**TINY_VIT, "architectures": ["ViTModel"]}},
    "other-dtype": {"config": {**TINY_VIT, "torch_dtype": "bfloat16"}},
    "other-labels": {"config": {**TINY_VIT, "id2label": {"0": "a"}}},
    "D3-huge": {"config": {**TINY_VIT, "num_hidden_layers": 10**9}},
    "no-config": {"config": "vit"},
    "option": {"trust_remote_code": True},
}


@needs_transformers
@pytest.mark.parametrize("row", INVALID)
def test_config_out_of_bounds(row: str) -> None:
    with pytest.raises(ValidationError):
        parse({"name": "transformers/vit", "num_classes": 3, **INVALID[row]})


@needs_timm
@pytest.mark.parametrize(
    "options",
    [{"pretrained": True}, {"checkpoint_path": "/etc/passwd"}, {"depth": 10**9}],
    ids=["D6-pretrained", "D6-path", "D3-huge"],
)
def test_option_of_timm_out_of_bounds(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        parse({"name": "timm/test_vit", "num_classes": 3, "options": options})


IMPOSSIBLE: dict[str, tuple[dict[str, Any], str]] = {
    "timm-name": ({"name": "timm/nothing"}, "architecture_unknown"),
    "timm-hub": ({"name": "timm/hf-hub:owner/evil"}, "architecture_unknown"),
    "timm-any-size": ({"name": "timm/test_resnet", "image_size": 32}, "architecture_invalid"),
    "timm-silent": ({"name": "timm/test_efficientnet", "image_size": 32}, "architecture_invalid"),
    "timm-option": ({"name": "timm/test_vit", "options": {"dims": 3}}, "architecture_invalid"),
    "timm-depth": (
        {"name": "timm/test_vit", "options": {"depth": 60_000}},
        "architecture_too_large",
    ),
    "timm-width": (
        {"name": "timm/test_vit", "options": {"embed_dim": 65_536, "num_heads": 1}},
        "architecture_too_large",
    ),
    "type": ({"name": "transformers/bert"}, "architecture_unknown"),
    "wrapper": ({"name": "transformers/timm_wrapper"}, "architecture_unknown"),
    "act": (
        {"name": "transformers/vit", "config": {**TINY_VIT, "hidden_act": "none"}},
        "architecture_invalid",
    ),
    "depth": (
        {"name": "transformers/vit", "config": {**TINY_VIT, "num_hidden_layers": 60_000}},
        "architecture_too_large",
    ),
}


@needs_timm
@needs_transformers
@pytest.mark.usefixtures("unplugged")
@pytest.mark.parametrize("row", IMPOSSIBLE)
def test_impossible(row: str) -> None:
    raw, code = IMPOSSIBLE[row]
    with pytest.raises(InvalidInput) as refused:
        expected_shapes(parse({"num_classes": 3, **raw}))
    assert refused.value.code == code


@needs_timm
@needs_transformers
def test_the_catalogue_lists_what_is_installed() -> None:
    entries = {entry["name"]: entry for entry in networks.catalogue()}
    assert {"timm/resnet18", "transformers/vit", "torchvision/resnet18"} <= entries.keys()
    assert "num_classes" in entries["timm/resnet18"]["schema"]["properties"]


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_extras, "FAMILIES", ("not_installed_anywhere",))
    with pytest.raises(InvalidInput, match=r"pip install 'lethe\[not_installed_anywhere\]'") as e:
        parse({"name": "not_installed_anywhere/vit", "num_classes": 3})
    assert e.value.code == "architecture_extra_missing"


@pytest.mark.slow
@needs_transformers
@pytest.mark.usefixtures("unplugged")
def test_every_type_builds_and_answers() -> None:
    """On the meta device, with the package's own default of every option, left out or saved."""
    import transformers

    names = [name for name in _names() if name.startswith("transformers/")]
    for name in names:
        config = parse({"name": name, "num_classes": 7})
        kind = transformers.CONFIG_MAPPING[name.removeprefix("transformers/")]
        saved = json.loads(kind(num_labels=7).to_json_string(use_diff=False))
        assert parse({"name": name, "num_classes": 7, "config": saved}) == config
        assert expected_shapes(config), name
        with torch.device("meta"):
            model = build(config).eval()
        side = config.model_dump()["config"].get("image_size", 224)
        side = side if isinstance(side, int) else side[0]
        assert model(torch.empty(2, 3, side, side, device="meta")).shape == (2, 7), name


def _names() -> list[str]:
    return [entry.name for entry in _extras.installed()]
