"""Fine-tuning: the retain set alone, and what becomes of batch norm."""

from functools import partial

import pytest
import torch
from torch import nn

from core import weights
from core.determinism import fresh_seed
from core.errors import Infeasible
from core.measures import margin, membership_auc
from core.recipe import SGD, Recipe
from core.scores import gather
from core.unlearners.fine_tune import FineTuneConfig, fine_tune
from tests.core import cases
from tests.worlds import CPU, accuracy, digits_world, trained


def test_it_forgets_in_the_direction_of_the_oracle():
    world = cases.small_world()
    forget = cases.first(world, 80)
    given = cases.problem(world, forget)
    oracle = accuracy(cases.oracle(world, forget), given.forget)
    before = accuracy(given.model, given.forget)
    after = accuracy(fine_tune(given, FineTuneConfig(epochs=30, lr=0.2)), given.forget)
    assert abs(after - oracle) < abs(before - oracle)


def test_the_retain_set_stays_learned():
    world = cases.small_world()
    given = cases.problem(world, cases.first(world, 80))
    assert accuracy(fine_tune(given, FineTuneConfig()), given.retain) > 0.95


def batch_norm_of(policy):
    world = cases.noise_world(num_train=400, num_holdout=400, noise_dims=20, batch_norm=True)
    given = cases.problem(world, cases.first(world, 100), bn_policy=policy)
    layer = next(m for m in given.model.modules() if isinstance(m, nn.BatchNorm1d))
    before = layer.running_mean.clone()
    linear = next(m for m in given.model.modules() if isinstance(m, nn.Linear))
    model = fine_tune(given, FineTuneConfig(epochs=1))
    with torch.no_grad():
        truth = linear(given.retain.images).mean(0)
    del model
    return before, layer.running_mean, truth


def test_frozen_statistics_stay():
    before, after, _ = batch_norm_of("frozen")
    assert torch.equal(before, after)


@pytest.mark.parametrize(("policy", "exact"), [("tracked", False), ("recalibrate", True)])
def test_recalibrated_statistics_are_those_of_the_retain_set(policy, exact):
    before, after, truth = batch_norm_of(policy)
    assert not torch.equal(before, after)
    assert torch.allclose(after, truth, atol=1e-4) is exact


def normed(policy):
    world = cases.noise_world(num_train=400, num_holdout=400, noise_dims=20, batch_norm=True)
    return cases.problem(world, cases.first(world, 100), bn_policy=policy)


def test_a_cycle_starts_from_the_weights_that_frozen_statistics_belong_to():
    still = {"epochs": 1, "lr": 1e-9}
    frozen, parent = normed("frozen"), normed("frozen").model.state_dict()
    found = fine_tune(frozen, FineTuneConfig(schedule="one_cycle", **still)).state_dict()
    for name, value in parent.items():
        assert torch.allclose(found[name], value, atol=1e-6)
    assert [told["keep"] for told in frozen.tried] == [1.0]
    for policy in ("recalibrate", "tracked"):
        moved = fine_tune(normed(policy), FineTuneConfig(schedule="one_cycle", **still))
        weight = next(name for name, value in parent.items() if value.ndim > 1)
        assert not torch.allclose(moved.state_dict()[weight], parent[weight], atol=1e-2)


def test_other_weights_under_frozen_statistics_are_refused():
    with pytest.raises(Infeasible, match="batch norm"):
        fine_tune(normed("frozen"), FineTuneConfig(keep=0.5))
    fine_tune(normed("frozen"), FineTuneConfig(keep=1.0, epochs=1))
    world = cases.small_world()
    plain = cases.problem(world, cases.first(world, 20), bn_policy="frozen")
    fine_tune(plain, FineTuneConfig(keep=0.5, epochs=1))
    assert plain.tried == []


def test_a_cycle_with_a_high_peak_forgets_what_a_small_rate_keeps():
    world = cases.noise_world(num_train=2000, num_holdout=2000, noise_dims=400, batch_norm=True)
    chosen = cases.first(world, 400)
    forget = world.train.take(chosen)

    def told_apart(model):
        scores = [
            margin(gather(model, records, batch_size=500, device=CPU), records.labels)
            for records in (forget, world.holdout)
        ]
        return abs(membership_auc(*scores) - 0.5)

    problem = partial(cases.problem, world, chosen)
    constant = fine_tune(problem(), FineTuneConfig(epochs=8))
    cycle = fine_tune(problem(), FineTuneConfig(epochs=8, lr=1.0, schedule="one_cycle"))
    oracle = told_apart(cases.oracle(world, chosen))
    assert told_apart(cycle) - oracle < 0.85 * (told_apart(constant) - oracle)
    assert accuracy(trained(world), world.holdout) - accuracy(cycle, world.holdout) < 0.03


def test_a_cycle_flips_images_unless_told_otherwise():
    digits = digits_world(num_records=200, epochs=1)

    def weights_of(**options):
        given = cases.problem(digits, cases.first(digits, 20))
        return weights.digest(fine_tune(given, FineTuneConfig(epochs=1, **options)))

    cycle = partial(weights_of, schedule="one_cycle")
    assert cycle() == cycle(augment=("flip",))
    assert len({cycle(), cycle(augment=("crop", "flip")), cycle(augment=())}) == 3
    assert weights_of() == weights_of(augment=digits.recipe.augment)


@pytest.mark.parametrize("selector", ["records", "class"])
def test_length_and_peak_of_a_cycle_come_from_the_recipe(selector):
    world = cases.small_world()
    recipe = Recipe(epochs=12, batch_size=32, optimizer=SGD(lr=0.1), label_smoothing=0.1)

    def weights_of(**options):
        forget = world.train.labels == 0
        given = cases.problem(world, forget, selector=selector, recipe=recipe)
        config = FineTuneConfig(schedule="one_cycle", **options)
        return weights.digest(fine_tune(given, config))

    assert weights_of() == weights_of(epochs=3, lr=0.1, keep=0.5)
    assert weights_of() != weights_of(epochs=2)
    assert weights_of() != weights_of(lr=0.12)
    assert weights_of() != weights_of(keep=0.7)


@pytest.mark.parametrize(
    ("options", "kept"), [({"keep": 0.25}, 0.25), ({"schedule": "one_cycle"}, 0.5), ({}, 1.0)]
)
def test_weight_matrices_start_between_the_parent_and_a_new_network(options, kept):
    world = cases.small_world()
    given = cases.problem(world, cases.first(world, 20))
    parent = {name: value.clone() for name, value in given.model.state_dict().items()}
    fresh = given.fresh(fresh_seed(given.seed)).state_dict()
    found = fine_tune(given, FineTuneConfig(epochs=1, lr=1e-9, **options)).state_dict()
    for name, value in parent.items():
        share = kept if value.ndim > 1 else 1.0
        assert torch.allclose(found[name], share * value + (1 - share) * fresh[name], atol=1e-6)


def test_labels_stay_as_smooth_as_the_recipe_has_them():
    world = cases.small_world()

    def weights_of(smoothing):
        recipe = world.recipe.model_copy(update={"label_smoothing": smoothing})
        given = cases.problem(world, cases.first(world, 20), recipe=recipe)
        return weights.digest(fine_tune(given, FineTuneConfig(epochs=1)))

    assert weights_of(0.1) != weights_of(0.0)
