"""The real gates on cheats, and on an oracle that is judged as if it were approximate.

The models memorise: 1 000 training records per class, or half as many, among hundreds of dimensions
of pure noise.
"""

import dataclasses
import functools
import math

import pytest
import torch

from core import batchnorm, gates, weights
from core.audit_gates import audits_for
from core.audits import run_chosen
from core.determinism import seed_everything
from core.policies import may_publish
from core.training import fit
from core.unlearners import unlearners
from tests.core import cases
from tests.worlds import CPU, accuracy, trained

LABEL = 1


@functools.cache
def records_world():
    """10 000 training and 10 000 holdout records, as the power figures assume."""
    return cases.noise_world()


@functools.cache
def class_world():
    """500 training records per class and enough never-seen ones of each to compare them with."""
    return cases.noise_world(num_train=5000, num_holdout=20_000, noise_dims=500, noise=0.7)


@functools.cache
def batch_norm_world():
    return cases.noise_world(num_train=5000, noise_dims=300, batch_norm=True)


def class_mask(world):
    return world.train.labels == LABEL


def judged_for_records(world, model, count):
    return gates.judge_all(cases.evidence(world, model, cases.first(world, count)), exact=False)


def judged_for_class(world, model):
    evidence = cases.class_evidence(world, model, LABEL)
    findings = run_chosen(evidence, audits_for("standard", "class", exact=False, num_classes=10))
    judged = gates.judge_all(evidence, exact=False, findings=findings)
    assert "prototype_recovery" in {gate.name for gate in judged}
    return judged


def names(judged, verdict):
    return {gate.name for gate in judged if gate.verdict == verdict}


def assert_refused(judged, *by):
    """No policy publishes it, and these gates are among those that failed."""
    assert set(by) <= names(judged, "failed")
    for policy in ("fast", "standard", "strict", "exact"):
        assert not may_publish(policy, False, judged)[0]


def assert_published(judged):
    assert may_publish("standard", False, judged) == (
        True,
        "utility and the required forgetting gates passed",
    )
    assert names(judged, "failed") == set()


def edited(model, edit):
    with torch.no_grad():
        edit(model)
    return model


def noisy(model, scale):
    draw = torch.Generator().manual_seed(3)

    def disturb(model):
        for p in model.parameters():
            p += scale * p.std() * torch.randn(p.shape, generator=draw)

    return edited(model, disturb)


def scrambled(model):
    """Every weight is replaced by one drawn at random, as large as it was."""

    def shuffle(model):
        draw = torch.Generator().manual_seed(4)
        for p in model.parameters():
            p.copy_(p.flatten()[torch.randperm(p.numel(), generator=draw)].view_as(p))

    return edited(model, shuffle)


def zeroed(model):
    """It answers every record alike, so that no attack can tell any from another."""
    return edited(model, lambda m: [p.zero_() for p in m.parameters()])


def poisoned(model):
    return edited(model, lambda m: m[-1].weight[0, 0].fill_(math.nan))


def cut(model):
    """The network, unable to name one class and otherwise as it was."""
    return edited(model, lambda m: m[-1].bias[LABEL].fill_(-50.0))


def recalibrated(world, mask):
    model = trained(world)
    batchnorm.recalibrate(model, world.train.take(~mask), 250, CPU)
    return model


@pytest.mark.parametrize("world", [records_world, class_world, batch_norm_world])
def test_the_parents_memorised(world):
    parent = trained(world())
    assert accuracy(parent, world().train) - accuracy(parent, world().holdout) > 0.2


def test_an_oracle_passes_for_5000_records():
    world = records_world()
    model = cases.oracle(world, cases.first(world, 5000))
    judged = judged_for_records(world, model, 5000)
    assert_published(judged)
    assert {"utility", "membership_auc", "forget_accuracy"} <= names(judged, "passed")


def test_an_oracle_passes_for_a_class():
    world = class_world()
    judged = judged_for_class(world, cases.oracle(world, class_mask(world)))
    assert_published(judged)
    assert {"utility", "class_accuracy", "membership_auc"} <= names(judged, "passed")


def test_doing_nothing_is_refused_for_records():
    world = records_world()
    judged = judged_for_records(world, trained(world), 5000)
    assert_refused(judged, "changed", "membership_auc", "forget_accuracy")


def test_doing_nothing_is_refused_for_a_class():
    world = class_world()
    judged = judged_for_class(world, trained(world))
    assert_refused(judged, "changed", "class_accuracy", "membership_auc")


@pytest.mark.parametrize("exact", [False, True])
def test_doing_nothing_is_refused_even_where_nothing_else_can_be_measured(exact):
    world = class_world()
    found = cases.evidence(world, trained(world), cases.first(world, 3))
    judged = gates.judge_all(found, exact=exact)
    assert names(judged, "failed") == {"changed"}
    assert not may_publish("standard", exact, judged)[0]


def test_recalibrating_batch_norm_alone_is_refused_for_records():
    world = batch_norm_world()
    model = recalibrated(world, cases.first(world, 1500))
    assert not weights.equal(model, trained(world))
    judged = judged_for_records(world, model, 1500)
    assert_refused(judged, "changed", "membership_auc", "forget_accuracy")


def test_recalibrating_batch_norm_alone_is_refused_for_a_class():
    world = batch_norm_world()
    judged = judged_for_class(world, recalibrated(world, class_mask(world)))
    assert_refused(judged, "changed", "class_accuracy", "membership_auc")


def test_cutting_the_logit_of_the_class_is_refused_by_the_attack_alone():
    world = class_world()
    judged = judged_for_class(world, cut(trained(world)))
    assert_refused(judged, "membership_auc")
    assert names(judged, "failed") == {"membership_auc"}
    assert {"utility", "class_accuracy", "changed"} <= names(judged, "passed")


@pytest.mark.parametrize("scale", [0.001, 0.1])
def test_mild_noise_is_refused_by_forgetting_alone(scale):
    world = class_world()
    model = noisy(trained(world), scale)
    of_records, of_class = judged_for_records(world, model, 2500), judged_for_class(world, model)
    assert_refused(of_records, "membership_auc", "forget_accuracy")
    assert_refused(of_class, "membership_auc", "class_accuracy")
    for judged in (of_records, of_class):
        assert {"utility", "changed"} <= names(judged, "passed")


@pytest.mark.parametrize("destroy", [zeroed, scrambled, functools.partial(noisy, scale=30.0)])
def test_a_destroyed_model_is_refused(destroy):
    world = class_world()
    model = destroy(trained(world))
    assert_refused(judged_for_records(world, model, 2500), "utility", "worst_class")
    assert_refused(judged_for_class(world, model), "utility", "worst_class")


def test_a_destroyed_model_hides_its_forget_set_and_utility_still_refuses_it():
    world = class_world()
    judged = judged_for_records(world, zeroed(trained(world)), 2500)
    assert "membership_auc" in names(judged, "passed")
    assert_refused(judged, "utility")


def test_a_model_of_nan_is_refused():
    world = class_world()
    model = poisoned(trained(world))
    assert_refused(judged_for_records(world, model, 2500), "finite")
    assert_refused(judged_for_class(world, model), "finite")


def test_forgetting_too_much_is_refused():
    """Forget records are taught wrong labels, so that they stand out by how wrong they are."""
    world = class_world()
    forget = cases.first(world, 1000)
    wrong = torch.where(forget, (world.train.labels + 1) % world.num_classes, world.train.labels)
    taught = dataclasses.replace(world.train, labels=wrong)
    model = trained(world).requires_grad_(True)
    model = fit(model, taught, world.recipe, seed=1, device=CPU)
    judged = judged_for_records(world, model, 1000)
    assert_refused(judged, "membership_auc", "forget_accuracy")
    assert next(gate for gate in judged if gate.name == "membership_auc").value < 0.45


def dampened(world, mask, **changes):
    """Dampening as its paper's code does it: importance per batch, and a fixed alpha."""
    config = unlearners.parse({"name": "ssd", "estimator": "batch", "alpha": 10.0})
    seed_everything(7)
    problem = cases.problem(world, mask, batch_size=128, **changes)
    return unlearners["ssd"].run(problem, config).eval()


def test_dampening_with_a_fixed_alpha_forgets_a_class_and_is_refused_for_its_utility():
    world = batch_norm_world()
    model = dampened(world, class_mask(world), selector="class")
    assert accuracy(model, world.train.take(class_mask(world))) < 0.1
    judged = judged_for_class(world, model)
    assert "class_accuracy" in names(judged, "passed")
    assert_refused(judged, "utility", "worst_class")
    assert next(gate for gate in judged if gate.name == "utility").value > 0.05


def test_dampening_with_a_fixed_alpha_leaves_500_random_records_and_is_refused():
    world = batch_norm_world()
    forget = cases.first(world, 500)
    model = dampened(world, forget)
    assert accuracy(model, world.train.take(forget)) == 1.0
    assert_refused(judged_for_records(world, model, 500), "membership_auc", "forget_accuracy")


def shaped(labels, right, high):
    """Logits by record: that share right by a margin up to ``high``, the others as much wrong."""
    count = len(labels)
    draw = torch.Generator().manual_seed(5)
    signs = torch.where(torch.arange(count) < round(right * count), 1.0, -1.0)
    margins = high * signs * torch.rand(count, generator=draw).clamp_min(0.01)
    logits = torch.full((count, 10), -50.0)
    logits[torch.arange(count), (labels + 1) % 10] = 0.0
    logits[torch.arange(count), labels] = margins[torch.randperm(count, generator=draw)]
    return logits


def test_an_attack_that_learns_nothing_does_not_excuse_what_is_still_known():
    """Most forget records are right by a little: as known as never-seen ones to the attack."""
    world = records_world()
    given = cases.evidence(world, noisy(trained(world), 0.001), cases.first(world, 5000))
    never_seen = shaped(given.holdout.labels, 0.77, 4.0)
    retained = {"retain": given.scores["before"]["retain"], "holdout": never_seen}
    scores = {
        "before": {"forget": shaped(given.forget.labels, 1.0, 8.0), **retained},
        "after": {"forget": shaped(given.forget.labels, 0.95, 2.8), **retained},
    }
    judged = gates.judge_all(dataclasses.replace(given, scores=scores), exact=False)
    found = {gate.name: gate for gate in judged}
    assert found["membership_auc"].value == pytest.approx(0.5, abs=0.02)
    assert found["forget_accuracy"].value == pytest.approx(0.18, abs=0.01)
    assert {"utility", "membership_auc"} <= names(judged, "passed")
    assert names(judged, "failed") == {"forget_accuracy"}
    assert_refused(judged, "forget_accuracy")
