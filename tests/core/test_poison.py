"""Removing poison: its labels are wrong, so what counts is that they are no longer given."""

from functools import lru_cache

import pytest
import torch

from core import gates
from core.backdoor import Trigger, attack
from core.determinism import seed_everything
from core.policies import Situation, ladder, may_publish
from core.training import fit
from core.unlearners import unlearners
from core.unlearners._guard import Guard
from tests.core import cases
from tests.core.test_backdoor import poisoned_world
from tests.worlds import CPU, digits_world, trained

TRIGGER = Trigger(target=7, size=2, value=255, offset=0)
POISON = "poison_removal"


@lru_cache
def clean():
    digits = digits_world(num_records=800, epochs=10)
    return fit(digits.fresh(3), digits.train, digits.recipe, seed=3, device=CPU).eval()


def judged(model, **changes):
    world, chosen = poisoned_world()
    evidence = cases.evidence(world, model, chosen, **{"purpose": POISON, **changes})
    return {gate.name: gate for gate in gates.judge_all(evidence, exact=False)}


def success(model):
    never_seen = digits_world(num_records=800, epochs=10).holdout
    found = attack(model, never_seen, TRIGGER, num_classes=10, batch_size=500, device=CPU)
    return found.success.value


def test_a_clean_model_passes_though_it_knows_less_of_the_poison_than_of_the_rest():
    found = judged(clean())
    assert found["poison_accuracy"].verdict == "passed"
    assert found["forget_accuracy"].interval[1] < found["forget_accuracy"].band[0]
    compared = ("membership_auc", "forget_accuracy")
    assert {found[name].role for name in compared} == {"reported"}
    assert judged(clean(), purpose="erasure").keys() == found.keys() - {"poison_accuracy"}


@pytest.mark.parametrize("selector", ["records", "class"])
def test_of_strict_too_nothing_else_counts_as_forgetting(selector):
    world, chosen = poisoned_world()
    classes = frozenset({TRIGGER.target})
    evidence = cases.evidence(
        world, clean(), chosen, purpose=POISON, selector=selector, forget_classes=classes
    )
    found = gates.judge_all(evidence, exact=False, policy="strict", findings=[])
    roles = {gate.name: gate.role for gate in found if gate.kind == "forgetting"}
    assert len(roles) > 5
    assert {name for name, role in roles.items() if role != "reported"} == {"poison_accuracy"}


def unlearned(config):
    world, chosen = poisoned_world()
    assert success(trained(world)) > 0.8
    options = unlearners.parse(config)
    seed_everything(7)
    return unlearners[options.name].run(cases.problem(world, chosen, purpose=POISON), options)


@pytest.mark.parametrize("policy", ["fast", "standard"])
def test_a_model_full_of_poison_is_not_published(policy):
    world, _ = poisoned_world()
    publish, reason = may_publish(policy, False, [*judged(trained(world)).values()])
    assert (publish, reason) == (False, "failed: poison_accuracy, changed")


def test_a_request_of_few_poison_records_has_no_power():
    world, chosen = poisoned_world()
    few = cases.evidence(world, clean(), chosen, purpose=POISON).of_forget(torch.arange(3))
    gate = {gate.name: gate for gate in gates.judge_all(few, exact=False)}["poison_accuracy"]
    assert (gate.verdict, gate.power) == ("inconclusive", 0.0)


def test_forgotten_means_that_the_label_is_gone():
    world, chosen = poisoned_world()
    problem = cases.problem(world, chosen, purpose=POISON)
    guard = Guard(problem, 1.0)
    parent = guard.measure(problem.model)
    assert parent.target == pytest.approx(parent.forget_accuracy / 10)
    assert not parent.forgot
    assert guard.measure(clean()).forgot


def test_the_first_approximate_rung_closes_the_door():
    asked = Situation(
        selector="records", num_forget=40, has_recipe=True, has_holdout=True, purpose=POISON
    )
    first = next(rung for rung in ladder(asked) if rung["name"] == "ssd")
    assert success(unlearned(first)) < 0.4


def test_descent_goes_on_until_the_label_is_gone():
    assert success(unlearned({"name": "neggrad_plus", "epochs": 20})) < 0.4
