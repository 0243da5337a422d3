"""The ensemble network: members that answer together, priced and checked like any other."""

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from core import networks, weights
from core.classifier import classifier, penultimate
from core.data import Records
from core.importance import estimate
from core.masks import layer_weights, prunable
from core.networks.ensemble import EnsembleConfig
from core.unlearners.fisher_forgetting import FisherForgettingConfig, fisher_forgetting
from core.weights import DTYPE_NAMES
from tests.core import cases
from tests.worlds import CPU, trained

KEY = "0123456789abcdef"
MLP = {"name": "mlp", "in_features": 5}


def config(**changes):
    usual = {"name": "ensemble", "members": 3, "member": MLP, "shard_key": KEY, "num_classes": 4}
    return networks.parse({**usual, **changes})


def test_logits_are_the_log_of_the_mean_softmax():
    model = networks.build(config(), seed=0).double().eval()
    x = torch.randn(7, 5, dtype=torch.float64)
    mean = sum(member(x).softmax(dim=1) for member in model.members) / 3
    torch.testing.assert_close(model(x).exp(), mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model(x).softmax(dim=1), mean, rtol=1e-12, atol=1e-12)


def test_members_start_unalike():
    first, second, _ = networks.build(config(), seed=0).members
    assert not weights.equal(first, second)


def test_it_is_priced_with_all_its_members_and_its_seal():
    shapes = networks.expected_shapes(config())
    state = networks.build(config()).state_dict()
    assert shapes == {key: (tuple(t.shape), DTYPE_NAMES[t.dtype]) for key, t in state.items()}
    assert shapes["seal"] == ((3, 4), "I64")


def test_each_member_has_a_last_layer():
    model = networks.build(config(), seed=0)
    heads = {f"members.{n}.{classifier(model.members[n])[0]}.weight" for n in range(3)}
    assert len(heads) == 3
    assert prunable(model).keys() == layer_weights(model).keys() - heads
    assert len(prunable(model)) == 3


def test_features_are_those_of_all_members():
    model = networks.build(config(), seed=0)
    draw = torch.Generator().manual_seed(0)
    records = Records(
        images=torch.randn(9, 5, generator=draw), labels=torch.zeros(9).long(), rows=torch.arange(9)
    )
    options = {"batch_size": 4, "device": CPU}
    each = [penultimate(member, records, **options) for member in model.members]
    assert torch.equal(penultimate(model, records, **options), torch.cat(each, dim=1))


def test_the_row_of_a_class_becomes_noise_in_every_member():
    world = cases.small_world()
    member = {"name": "mlp", "in_features": 10}
    model = networks.build(config(member=member), seed=0)
    before = [m[-1].weight.detach().clone() for m in model.members]
    given = cases.problem(world, world.train.labels == 1, selector="class")
    after = fisher_forgetting(replace(given, model=model), FisherForgettingConfig(alpha=1e-12))
    for old, member in zip(before, after.members, strict=True):
        others = [0, 2, 3]
        torch.testing.assert_close(member[-1].weight[others], old[others], rtol=0, atol=1e-3)
        assert float((member[-1].weight[1].detach() - old[1]).abs().max()) > 1e-2


def test_a_config_is_complete_and_stays_so():
    made = config()
    assert made.member == {
        "name": "mlp",
        "in_features": 5,
        "hidden": [128],
        "num_classes": 4,
        "activation": "relu",
        "batch_norm": False,
        "dropout": 0.0,
    }
    assert networks.parse(made.model_dump(mode="json")) == made


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"member": {"name": "ensemble"}}, "not of an ensemble"),
        ({"member": {"name": "nothing"}}, "name must be"),
        ({"member": {}}, "name must be"),
        ({"member": {"name": ["mlp"]}}, "name must be"),
        ({"member": {**MLP, "num_classes": 5}}, "that of the ensemble"),
        ({"member": {"name": "mlp"}}, "in_features: Field required"),
        ({"member": {**MLP, "hiden": []}}, "hiden: Extra inputs"),
        ({"members": 1}, "greater than or equal to 2"),
        ({"members": 65}, "less than or equal to 64"),
        ({"shard_key": "short"}, "at least 16"),
        ({"num_classes": 0}, "greater than or equal to 1"),
    ],
)
def test_bad_options_are_refused_with_a_reason(changes, said):
    with pytest.raises(ValidationError, match=said):
        config(**changes)


def test_importance_per_record_reaches_every_member():
    world = cases.suited("sisa", cases.small_world())
    found = estimate(
        trained(world), world.train.take(range(20)), "fisher_persample", batch_size=8, device=CPU
    )
    assert {name.split(".")[1] for name in found.values} == {"0", "1", "2", "3"}
    assert all(bool((value > 0).any()) for value in found.values.values())
    assert EnsembleConfig.source
