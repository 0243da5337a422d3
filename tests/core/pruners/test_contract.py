"""What every registered pruner keeps."""

import importlib

import pytest
import torch
from torch import nn

from core import weights
from core.errors import Infeasible, MissingEvidence, OutOfTime
from core.masks import apply_masks, holds, keep_largest, layer_weights, prunable, size, sparsity
from core.pruners import pruners
from tests.core.pruners.cases import images, pruning, run

NAMES = pruners.names()
TRAINERS = ["imp", "omp"]
OPTIONS = {
    "imp": {"rounds": 2, "epochs": 1},
    "omp": {"sparsity": 0.7, "epochs": 1},
    "synflow": {"sparsity": 0.7, "rounds": 10},
}


def given(name, **changes):
    """A parent that has zeros to keep, for the one pruner that asks for them."""
    base = pruning(images(), **changes)
    if name == "zeros":
        run("omp", base, sparsity=0.7, epochs=0)
    return base


def pruned(name, **changes):
    return run(name, given(name, **changes), **OPTIONS.get(name, {}))


def test_what_is_registered():
    assert NAMES == ["imp", "omp", "synflow", "zeros"]


@pytest.mark.parametrize("name", NAMES)
def test_zeros_are_plain_zeros_in_a_plain_model(name):
    found = pruned(name)
    assert holds(found.model, found.masks)
    assert 0.3 < found.sparsity < 0.8
    fresh = images().fresh()
    state = found.model.state_dict()
    assert {k: (v.shape, v.dtype) for k, v in state.items()} == {
        k: (v.shape, v.dtype) for k, v in fresh.state_dict().items()
    }
    assert not any(module.training for module in found.model.modules())
    assert all(mask.dtype == torch.bool for mask in found.masks.values())


@pytest.mark.parametrize("name", NAMES)
def test_no_layer_is_empty_and_the_classifier_stays(name):
    found = pruned(name)
    assert all(bool(mask.any()) for mask in found.masks.values())
    assert set(found.masks) == set(prunable(found.model))


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_bits(name):
    torch.manual_seed(1)
    first = pruned(name)
    torch.manual_seed(2)
    assert weights.equal(first.model, pruned(name).model)


@pytest.mark.parametrize("name", NAMES)
def test_progress_rises_to_one(name):
    told = []
    pruned(name, progress=lambda fraction, _: told.append(fraction))
    assert told == sorted(told)
    assert told[-1] == 1


@pytest.mark.parametrize("name", [*TRAINERS, "synflow"])
def test_a_spent_time_limit_ends_it(name):
    def spent():
        raise OutOfTime("the time limit of the job is spent")

    with pytest.raises(OutOfTime):
        pruned(name, check_time=spent)


@pytest.mark.parametrize("name", TRAINERS)
@pytest.mark.parametrize("missing", ["records", "recipe"])
def test_what_trains_needs_records_and_a_recipe(name, missing):
    assert pruners[name].config().needs == ("retain", "recipe")
    with pytest.raises(MissingEvidence):
        pruned(name, **{missing: None})


@pytest.mark.parametrize("name", sorted({*NAMES} - {*TRAINERS}))
def test_what_needs_nothing_runs_without_records_and_recipe(name):
    assert pruners[name].config().needs == ()
    assert holds((found := pruned(name, records=None, recipe=None)).model, found.masks)


@pytest.mark.parametrize("name", NAMES)
def test_the_file_and_the_config_say_everything(name):
    entry = pruners[name]
    options = entry.config.model_json_schema()["properties"]
    assert all(o["description"].endswith(".") for key, o in options.items() if key != "name")
    assert entry.summary
    assert entry.config.source
    text = importlib.import_module(entry.run.__module__).__doc__
    assert all(f"\n{heading}: " in text for heading in ("Source", "Differs", "Cost", "Promise"))


def test_a_network_that_is_all_classifier_cannot_be_pruned():
    with pytest.raises(Infeasible, match="classifier"):
        prunable(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)))


def test_the_classifier_is_the_last_layer_not_one_of_its_shape():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    assert list(prunable(model)) == ["0.weight", "2.weight"]


def test_a_tied_classifier_is_not_pruned_under_its_other_name():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    assert list(layer_weights(model)) == ["0.weight", "1.weight"]
    assert list(prunable(model)) == ["1.weight"]


def test_a_layer_without_any_weight_left_is_refused():
    scores = {"large": torch.tensor([3.0, 2.0]), "small": torch.tensor([0.1])}
    with pytest.raises(Infeasible, match="small"):
        keep_largest(scores, 2)


def test_ties_are_cut_at_the_count():
    masks = keep_largest({"a": torch.ones(5), "b": torch.full((2,), 2.0)}, 4)
    assert masks["a"].tolist() == [True, True, False, False, False]
    assert sparsity(masks) == pytest.approx(3 / 7)


def test_values_under_a_reparametrised_mask_do_not_count_as_zeros():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    mask = torch.zeros(4, 4, dtype=torch.bool)
    apply_masks(model, {"0.weight": mask})
    assert holds(model, {"0.weight": mask})
    nn.utils.prune.custom_from_mask(model[0], "weight", mask)
    assert not holds(model, {})
    assert size(dict(model.named_parameters())) == 16 + 4 + 8 + 2
