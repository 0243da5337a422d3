"""The SVC attack: samples, scores, and values whose answer is known."""

import dataclasses
import math

import pytest
import torch

from core import svc
from core.audits import audits
from core.errors import MissingEvidence
from core.scores import draw_matched
from tests.core import cases
from tests.worlds import trained


def logits(labels, p_label):
    """Four classes, the label's probability given, the rest shared."""
    p = torch.as_tensor(p_label, dtype=torch.float32).expand(len(labels)).clone()
    out = ((1 - p) / 3).log()[:, None].repeat(1, 4)
    return out.scatter(1, labels[:, None], p.log()[:, None])


def evidence(forget, retain, holdout):
    world = cases.small_world()
    base = cases.evidence(world, world.fresh(), cases.first(world, 60))
    roles = {
        "forget": logits(base.forget.labels, forget),
        "retain": logits(base.retain.labels, retain),
        "holdout": logits(base.holdout.labels, holdout),
    }
    return dataclasses.replace(base, scores={"before": base.scores["before"], "after": roles})


@pytest.mark.parametrize("feature", ["confidence", "entropy", "modified_entropy", "correctness"])
def test_what_looks_unseen_counts_as_unseen(feature):
    unseen = svc.efficacy(evidence(0.2, 0.95, 0.2), "after", feature)
    seen = svc.efficacy(evidence(0.95, 0.95, 0.2), "after", feature)
    assert (unseen.value, seen.value) == (1.0, 0.0)
    assert unseen.low < 1.0


def test_the_value_is_the_share_of_true_negatives():
    mixed = torch.full((60,), 0.95)
    mixed[:15] = 0.2
    assert svc.efficacy(evidence(mixed, 0.95, 0.2), "after", "confidence").value == 0.25


def test_scores_beyond_the_fitted_ones_are_taken_for_the_nearest():
    draw = torch.Generator().manual_seed(0)
    base = cases.evidence(cases.small_world(), cases.small_world().fresh(), torch.arange(240) < 60)
    retain = 1 - 0.3 * torch.rand(len(base.retain), generator=draw) ** 2
    holdout = 1 - 0.3 * torch.rand(len(base.holdout), generator=draw)
    # so far out that the kernel is zero for every fitted score
    unseen = svc.efficacy(evidence(1e-8, retain, holdout), "after", "modified_entropy")
    assert unseen.value == 1.0


def test_scores_have_their_right_formulas():
    p = torch.tensor([[0.7, 0.2, 0.1]] * 3)
    labels = torch.arange(3)
    found = {f: svc.score(p.log(), labels, f).tolist() for f in svc.Feature.__args__}
    assert found["confidence"] == pytest.approx([0.7, 0.2, 0.1])
    assert found["correctness"] == [1, 0, 0]
    assert found["entropy"] == pytest.approx([0.801819] * 3, abs=1e-6)
    assert found["modified_entropy"] == pytest.approx([0.162167, 2.140867, 2.959736], abs=1e-6)


def test_both_samples_have_the_class_mix_of_the_forget_set():
    draw = torch.Generator().manual_seed(0)
    members, others = (torch.randint(0, 5, (n,), generator=draw) for n in (900, 400))
    wanted = torch.tensor([1] * 30 + [3] * 10)
    first, second = draw_matched(wanted, members, others, 80, seed=1)
    assert torch.bincount(members[first], minlength=5).tolist() == [0, 60, 0, 20, 0]
    assert torch.bincount(others[second], minlength=5).tolist() == [0, 60, 0, 20, 0]
    assert len(first.unique()) == 80
    again = draw_matched(wanted, members, others, 80, seed=1)
    assert torch.equal(again[0], first)
    assert not torch.equal(draw_matched(wanted, members, others, 80, seed=2)[0], first)


def test_classes_that_nobody_retained_leave_the_members_own_mix():
    members, others = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 0, 1, 2])
    first, second = draw_matched(torch.tensor([2, 2]), members, others, 4, seed=0)
    assert members[first].tolist() == others[second].tolist() == [0, 0, 0, 1]
    with pytest.raises(MissingEvidence, match="no class in common"):
        draw_matched(torch.tensor([0]), torch.tensor([0]), torch.tensor([1]), 4, seed=0)


def test_the_number_of_scores_is_bounded():
    world = cases.small_world()
    members = world.train.labels
    first, second = draw_matched(members, members, world.holdout.labels, 20, seed=0)
    assert len(first) == len(second) <= 22


@pytest.mark.parametrize("classes", [150, 200, 300])
def test_many_classes_leave_as_many_records_as_were_asked_for(classes):
    wanted = torch.arange(classes).repeat(2)
    others = torch.arange(classes).repeat(3)
    first, second = draw_matched(wanted, wanted, others, 100, seed=0)
    assert wanted[first].tolist() == others[second].tolist() == list(range(100))
    rare = torch.cat([torch.zeros(100, dtype=torch.int64), torch.arange(1, classes)])
    first, _ = draw_matched(rare, rare, rare, 60, seed=0)
    drawn = torch.bincount(rare[first], minlength=classes)
    assert int(drawn.sum()) == 60
    assert int(drawn[0]) in {60 * 100 // len(rare), 60 * 100 // len(rare) + 1}


@pytest.mark.parametrize("most", [7, 100, 1000])
def test_usual_counts_per_class_are_rounded_ones(most):
    draw = torch.Generator().manual_seed(most)
    labels = torch.randint(0, 5, (400,), generator=draw)
    first, _ = draw_matched(labels, labels, labels, most, seed=0)
    counts = torch.bincount(labels)
    assert torch.equal(
        torch.bincount(labels[first]), (counts / 400 * min(most, 400)).round().long()
    )


def test_the_parent_is_the_reference_until_there_is_an_oracle():
    world = cases.small_world()
    forget = cases.first(world, 60)
    ideal = cases.oracle(world, forget)
    audit = audits["mia_efficacy"]
    config = audit.config(features=("confidence",))
    (alone,) = audit.run(cases.evidence(world, ideal, forget), config)
    (beside,) = audit.run(cases.evidence(world, trained(world), forget, oracles=(ideal,)), config)
    assert (alone.reference_name, beside.reference_name) == ("before", "oracle")
    assert (alone.value, alone.reference) == (beside.reference, beside.value)
    assert beside.value < beside.reference
    assert math.isclose(alone.examples, 60)
