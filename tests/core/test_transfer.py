"""Transfer: features before the classifier, classes dropped, and which of them did harm.

Source classes 0 and 1 lie apart where the target's classes do. Classes 2 and 3 lie apart elsewhere
and compete for a hidden layer of one unit.
"""

import copy
from functools import lru_cache

import pytest
import torch
from torch import nn

from core import networks, weights
from core.classifier import classifier, penultimate
from core.data import Records
from core.errors import Infeasible, InvalidInput, MissingEvidence
from core.recipe import SGD, Recipe
from core.training import fit
from core.transfer import Source, drop_classes, linear_probe, rank_classes, transfer
from core.unlearners import unlearners
from tests.worlds import CPU

NETWORK = networks.parse(
    {"name": "mlp", "in_features": 6, "hidden": (1,), "activation": "tanh", "num_classes": 4}
)
RETRAIN = unlearners.parse({"name": "retrain"})
CHEAP = unlearners.parse({"name": "fine_tune", "epochs": 10, "lr": 0.05})


def records(values, labels):
    return Records(images=values, labels=labels, rows=torch.arange(len(labels)))


def fresh(seed):
    return networks.build(NETWORK, seed=seed)


@lru_cache
def source(seed=0):
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(600) % 4
    centres = torch.zeros(4, 6)
    centres[:2, 0] = torch.tensor([2.0, -2.0])
    centres[2:, 1] = torch.tensor([4.0, -4.0])
    train = records(centres[labels] + torch.randn(600, 6, generator=draw), labels)
    recipe = Recipe(epochs=15, batch_size=32, optimizer=SGD(lr=0.05))
    model = fit(fresh(seed), train, recipe, seed=seed, device=CPU)
    return Source(model=model, fresh=fresh, records=train, num_classes=4, recipe=recipe, seed=seed)


def target(count, seed):
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    values = torch.randn(count, 6, generator=draw)
    values[:, 0] += torch.where(labels == 0, 1.5, -1.5)
    return records(values, labels)


def batching():
    return {"batch_size": 16, "device": CPU}


def test_features_are_the_classifiers_input():
    data = target(40, 0)
    model = source().model
    name, layer = classifier(model)
    assert (name, layer) == ("3", model[3])
    found = penultimate(model, data, **batching())
    with torch.no_grad():
        assert torch.allclose(found, torch.tanh(model[1](data.images)), atol=1e-6)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_features_of_a_convolutional_classifier_are_averaged():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Flatten(2))
    data = records(torch.rand(5, 1, 6, 6), torch.zeros(5, dtype=torch.int64))
    found = penultimate(model, data, **batching())
    assert found.shape == (5, 4)


def test_features_of_a_linear_classifier_are_averaged_over_tokens():
    model = nn.Sequential(nn.Unflatten(1, (3, 2)), nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 2))
    data = target(7, 0)
    found = penultimate(model, data, **batching())
    with torch.no_grad():
        expected = model[:3](data.images).mean(dim=1)
    assert not found.is_inference()
    torch.testing.assert_close(found, expected)


def test_features_that_are_no_numbers_are_no_evidence():
    model = copy.deepcopy(source().model)
    torch.nn.init.constant_(model[1].weight, torch.nan)
    with pytest.raises(MissingEvidence, match="not finite"):
        penultimate(model, target(4, 0), **batching())


def test_a_network_without_layers_has_no_classifier():
    with pytest.raises(Infeasible):
        classifier(nn.Flatten())


@pytest.mark.parametrize("unlearner", [RETRAIN, CHEAP], ids=lambda options: options.name)
def test_dropping_a_class_unlearns_it_and_leaves_the_source(unlearner):
    given = source()
    before, data = weights.digest(given.model), given.records.digest()
    model = drop_classes(given, [3], unlearner)
    assert weights.digest(given.model) == before
    assert given.records.digest() == data
    of_class = given.records.images[given.records.labels == 3]
    with torch.no_grad():
        assert model(of_class).shape == (150, 4)
        was = (given.model(of_class).argmax(1) == 3).float().mean()
        now = (model(of_class).argmax(1) == 3).float().mean()
    assert now < was


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("unlearner", [RETRAIN, CHEAP], ids=lambda options: options.name)
def test_classes_that_help_rank_below_those_that_compete(seed, unlearner):
    ranking = rank_classes(source(seed), target(200, 5), unlearner)
    assert {influence.label for influence in ranking[:2]} == {2, 3}
    gains = [influence.gain for influence in ranking]
    assert gains == sorted(gains, reverse=True)


def test_ranking_of_chosen_classes_repeats():
    train = target(90, 5)
    first = rank_classes(source(), train, CHEAP, [1, 2])
    assert first == rank_classes(source(), train, CHEAP, [1, 2])
    assert {influence.label for influence in first} == {1, 2}


@pytest.mark.parametrize("seed", [0, 1])
def test_dropping_what_competes_helps_the_target(seed):
    found = transfer(source(seed), target(200, 5), target(1000, 6), [3, 2], CHEAP)
    assert found.dropped == (2, 3)
    assert found.after.value > found.before.value + 0.02
    assert found.before.value == linear_probe(source(seed), target(200, 5), target(1000, 6)).value
    assert found.seconds > 0


def test_a_probe_is_near_the_best_there_can_be():
    # classes at +-1.5 with unit variance: 93.3 % at best
    identity = Source(
        model=nn.Sequential(nn.Flatten(), nn.Linear(6, 4)),
        fresh=fresh,
        records=source().records,
        num_classes=4,
        recipe=None,
        seed=0,
    )
    found = linear_probe(identity, target(400, 5), target(4000, 6))
    assert 0.91 < found.value < 0.945
    assert found.low < found.value < found.high


@pytest.mark.parametrize("classes", [[], [9], [0, 9], [0, 1, 2, 3]])
def test_classes_that_cannot_be_dropped_are_refused(classes):
    with pytest.raises(InvalidInput) as caught:
        drop_classes(source(), classes, CHEAP)
    assert caught.value.code == "class_not_found"


def test_too_few_target_records_are_refused():
    with pytest.raises(ValueError, match="at least 3"):
        rank_classes(source(), target(4, 0), CHEAP, [1])
