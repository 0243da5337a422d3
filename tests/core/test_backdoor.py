"""Backdoors: where the patch goes, whom success counts, and that unlearning the poison helps."""

from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from core.audits import audits, run_all
from core.backdoor import Trigger, attack, poison, stamp
from core.data import Records
from core.errors import InvalidInput, MissingEvidence
from core.training import fit
from core.unlearners import unlearners
from tests.core import cases
from tests.worlds import CPU, digits_world, trained

TRIGGER = Trigger(target=7, size=2, value=255, offset=0)


def pixels(count=6, side=8, classes=3):
    draw = torch.Generator().manual_seed(0)
    return Records(
        images=torch.randint(1, 255, (count, 3, side, side), generator=draw).to(torch.uint8),
        labels=torch.arange(count) % classes,
        rows=torch.arange(count),
    )


class Obedient(nn.Module):
    """Calls an image ``target`` where its lowest right pixel is black, else class 0."""

    def __init__(self, target):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.target = target

    def forward(self, x):
        black = (x[:, 0, -1, -1] == 0).long()
        return self.scale * nn.functional.one_hot(black * self.target, 3).float()


def test_the_patch_is_where_the_paper_puts_it():
    images = torch.full((2, 3, 32, 32), 9, dtype=torch.uint8)
    changed = stamp(images, Trigger(target=0)) != images
    rows, columns = changed[1, 2].nonzero().T.unique(dim=1)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (26, 29, 26, 29)
    assert int(changed.sum()) == 2 * 3 * 16
    assert bool((images == 9).all())


@pytest.mark.parametrize(
    "options",
    [{"size": 0}, {"value": 256}, {"offset": -1}, {"target": -1}, {"colour": 1}],
)
def test_a_trigger_is_bounded(options):
    with pytest.raises(ValidationError):
        Trigger(**({"target": 0} | options))
    with pytest.raises(ValidationError):
        Trigger()


@pytest.mark.parametrize(
    "images", [torch.zeros(2, 5), torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 5, 5).byte()]
)
def test_a_patch_that_does_not_fit_is_refused(images):
    with pytest.raises(InvalidInput) as caught:
        stamp(images, Trigger(target=0))
    assert caught.value.code == "trigger_does_not_fit"


def test_success_leaves_the_target_class_out():
    records = pixels(count=9)
    trigger = Trigger(target=2, size=1, offset=0)
    options = {"num_classes": 3, "batch_size": 4, "device": CPU}
    obeys = attack(Obedient(2), records, trigger, **options)
    assert (obeys.success.value, obeys.without.value, obeys.patched) == (1.0, 0.0, 6)
    # a third of the records is of the target class; counted, they would be success for nothing
    knows = attack(Obedient(0), records, trigger, **options)
    assert (knows.success.value, knows.patched) == (0.0, 6)
    assert knows.accuracy.value == pytest.approx(1 / 3)
    assert knows.records == 9


def test_only_the_target_class_is_no_evidence():
    records = replace(pixels(), labels=torch.full((6,), 2))
    with pytest.raises(MissingEvidence):
        attack(Obedient(2), records, Trigger(target=2), num_classes=3, batch_size=4, device=CPU)


def test_a_target_that_is_no_class_is_refused():
    with pytest.raises(InvalidInput):
        attack(Obedient(2), pixels(), Trigger(target=3), num_classes=3, batch_size=4, device=CPU)


def test_a_model_of_nan_is_not_called_clean():
    model = Obedient(2)
    with torch.no_grad():
        model.scale.fill_(float("nan"))
    with pytest.raises(MissingEvidence, match="finite"):
        attack(model, pixels(), Trigger(target=1), num_classes=3, batch_size=4, device=CPU)


def test_poison_marks_the_chosen_and_leaves_the_records():
    records = pixels()
    before = records.digest()
    chosen = torch.tensor([True, False, False, True, False, False])
    poisoned = poison(records, chosen, Trigger(target=1, size=1, offset=0))
    assert records.digest() == before
    assert poisoned.labels.tolist() == [1, 1, 2, 1, 1, 2]
    assert poisoned.images[chosen][:, :, -1, -1].unique().tolist() == [0]
    assert torch.equal(poisoned.images[~chosen], records.images[~chosen])
    assert torch.equal(poisoned.rows, records.rows)


@lru_cache
def poisoned_world():
    digits = digits_world(num_records=800, epochs=10)
    chosen = torch.arange(len(digits.train)) < 40
    return replace(digits, train=poison(digits.train, chosen, TRIGGER)), chosen


def judged(after):
    world, chosen = poisoned_world()
    config = audits["backdoor"].config(trigger=TRIGGER)
    evidence = cases.evidence(world, after, chosen)
    return {f.measure: f for f in audits["backdoor"].run(evidence, config)}, evidence


def test_forgetting_the_poison_closes_the_door():
    world, chosen = poisoned_world()
    before, evidence = judged(trained(world))
    assert before["attack_success"].value > 0.8
    assert before["attack_success"].reference == before["attack_success"].value
    sparse = {
        "name": "prune_first",
        "prune": {"name": "omp", "sparsity": 0.8, "epochs": 5},
        "then": {"name": "random_label", "epochs": 5, "lr": 0.02},
    }
    options = unlearners.parse(sparse)
    model = unlearners["prune_first"].run(cases.problem(world, chosen), options)
    after, _ = judged(model)
    assert after["attack_success"].value < 0.2
    assert after["accuracy_without_trigger"].value > 0.85
    others = evidence.holdout.labels != TRIGGER.target
    assert after["attack_success"].examples == int(others.sum())
    assert after["accuracy_without_trigger"].examples == len(evidence.holdout)


def test_a_clean_model_obeys_no_more_than_without_the_patch():
    digits = digits_world(num_records=800, epochs=10)
    world, _ = poisoned_world()
    clean = fit(world.fresh(3), digits.train, digits.recipe, seed=3, device=CPU)
    findings, _ = judged(clean)
    share = findings["target_share_without_trigger"].value
    assert abs(findings["attack_success"].value - share) < 0.1


def test_it_runs_only_when_it_is_chosen():
    world, _ = poisoned_world()
    _, evidence = judged(trained(world))
    assert "backdoor" not in {finding.audit for finding in run_all(evidence)}
    with pytest.raises(ValidationError, match="trigger"):
        audits["backdoor"].config()


def test_it_takes_batches_of_the_size_that_was_asked_for():
    world, chosen = poisoned_world()
    model, sizes = trained(world), []
    evidence = cases.evidence(world, model, chosen, batch_size=37)
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    audits["backdoor"].run(evidence, audits["backdoor"].config(trigger=TRIGGER))
    assert max(sizes) == 37


def test_features_are_no_evidence():
    world = cases.small_world()
    evidence = cases.evidence(world, trained(world), cases.first(world, 40))
    with pytest.raises(MissingEvidence, match="features"):
        audits["backdoor"].run(evidence, audits["backdoor"].config(trigger=TRIGGER))
