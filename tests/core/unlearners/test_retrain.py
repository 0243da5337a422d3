"""Retraining: a new network, the retain set alone."""

import pytest
import torch

from core import weights
from core.errors import NothingChanged
from core.training import fit
from core.unlearners.retrain import RetrainConfig, fresh_seed, retrain
from tests.core import cases
from tests.worlds import CPU, accuracy, gaussian_world


def problem(**changes):
    world = cases.small_world()
    return cases.problem(world, cases.first(world, 80), **changes)


def test_it_is_the_recipe_on_the_retain_set_from_a_fresh_start():
    given = problem()
    seed = fresh_seed(given.seed)
    expected = fit(given.fresh(seed), given.retain, given.recipe, seed=seed, device=CPU)
    assert weights.equal(retrain(given, RetrainConfig()), expected)


def test_forget_records_are_unseen_again():
    world = gaussian_world()
    given = cases.problem(world, cases.first(world, 80))
    before = accuracy(given.model, given.forget)
    after = accuracy(retrain(given, RetrainConfig()), given.forget)
    never_seen = accuracy(given.model, given.tuning)
    assert before > 0.95
    assert abs(after - never_seen) < 0.15
    assert abs(after - never_seen) < abs(before - never_seen) / 2


def test_a_start_from_the_parents_tensors_is_refused():
    given = problem()
    shared = problem(fresh=lambda seed: given.model)
    with pytest.raises(NothingChanged):
        retrain(shared, RetrainConfig())


def test_one_shared_layer_is_enough_to_be_refused():
    given = problem()

    def warm(seed):
        model = given.fresh(seed)
        with torch.no_grad():
            next(model.parameters()).copy_(next(given.model.parameters()))
        return model

    with pytest.raises(NothingChanged, match="1 tensors"):
        retrain(problem(fresh=warm), RetrainConfig())


def test_a_forget_record_in_the_retain_set_is_our_own_mistake():
    given = problem()
    with pytest.raises(AssertionError):
        retrain(problem(retain=given.forget), RetrainConfig())


def test_it_is_exact():
    assert RetrainConfig.exact
