"""How gates decide, on logits made by hand: what was measured, the band, the power, the verdict."""

import copy
import math

import pytest
import torch
from torch import nn

from core import gates
from core.data import Records
from core.forgetting import class_accuracy, forget_accuracy, membership_auc
from core.intervals import paired_drop
from core.policies import may_publish
from core.problem import Evidence
from core.verdicts import verdict_of


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((0.1, 0.2), "passed"),
        ((0.0, 0.3), "passed"),
        ((-0.01, 0.3), "inconclusive"),
        ((0.0, 0.31), "inconclusive"),
        ((-1.0, 1.0), "inconclusive"),
        ((0.3, 0.4), "inconclusive"),
        ((-0.1, 0.0), "inconclusive"),
        ((0.31, 0.4), "failed"),
        ((-0.2, -0.01), "failed"),
        ((0.2, 0.2), "passed"),
        ((math.nan, math.nan), "inconclusive"),
    ],
)
def test_an_interval_inside_the_band_passes_and_a_disjoint_one_fails(interval, verdict):
    assert verdict_of(interval, (0.0, 0.3)) == verdict


CLASSES = 10


def records_of(count):
    labels = torch.arange(count) % CLASSES
    return Records(images=torch.zeros(count, 1), labels=labels, rows=torch.arange(count))


def logits_of(records, margins):
    """Logits whose margin grows with the one given; right where that is positive."""
    logits = torch.zeros(len(records), CLASSES)
    logits[torch.arange(len(records)), records.labels] = margins.float()
    return logits


def even(count, shift=0.0):
    """The quantiles of a normal distribution around ``shift``, in an order of their own."""
    shares = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    order = torch.randperm(count, generator=torch.Generator().manual_seed(count))
    return torch.special.ndtri(shares)[order] + shift


def evidence(members, others, parent, child, **changes):
    """Evidence of hand-made margins: ``parent`` and ``child`` score members and others.

    Retained records score like the others, which are the holdout.
    """
    first = nn.Linear(4, 4)
    second = copy.deepcopy(first)
    with torch.no_grad():
        second.weight += 0.1
    usual = {
        "before": first,
        "after": second,
        "forget": members,
        "retain": others,
        "holdout": others,
        "selector": "records",
        "num_classes": CLASSES,
        "forget_classes": frozenset(),
        "scores": {
            model: {
                "forget": logits_of(members, margins[0]),
                "holdout": logits_of(others, margins[1]),
                "retain": logits_of(others, margins[1]),
            }
            for model, margins in {"before": parent, "after": child}.items()
        },
    }
    return Evidence(**{**usual, **changes})


def attacked(num_forget, *, parent=1.0, child=0.0, num_holdout=10_000, **changes):
    """A parent whose forget records score ``parent`` higher than never-seen ones; its child."""
    others = even(num_holdout)
    return evidence(
        records_of(num_forget),
        records_of(num_holdout),
        (even(num_forget, parent), others),
        (even(num_forget, child), others),
        **changes,
    )


def answered(parent, child, *, labels=None, **changes):
    """A holdout that two models answer right or wrong as given; the forget set is one record."""
    others = records_of(len(parent))
    if labels is not None:
        others = Records(images=others.images, labels=labels, rows=others.rows)
    signs = [torch.where(right, 1.0, -1.0) for right in (parent, child)]
    one = torch.ones(1)
    return evidence(others.take([0]), others, (one, signs[0]), (one, signs[1]), **changes)


def by_name(evidence, *, exact=False):
    return {gate.name: gate for gate in gates.judge_all(evidence, exact=exact)}


@pytest.mark.parametrize(("count", "power"), [(50, 0.0), (200, 0.56), (500, 0.97), (1000, 1.0)])
def test_power_with_ten_thousand_holdout_records(count, power):
    gate = membership_auc(attacked(count))
    assert gate.band == pytest.approx((0.45, 0.55))
    assert round(gate.power, 2) == power
    assert gate.verdict == ("passed" if power >= 0.5 else "inconclusive")


@pytest.mark.parametrize("child", [0.0, 1.0, 5.0])
def test_three_records_are_never_judged_and_the_gate_says_no_power(child):
    gate = membership_auc(attacked(3, child=child))
    assert gate.verdict == "inconclusive"
    assert gate.power == 0.0
    assert "no power with 3 records" in gate.reason


@pytest.mark.parametrize("parent", [0.15, 0.3, 0.6, 2.0])
def test_the_band_is_half_the_distance_of_the_parent_and_at_most_5_points(parent):
    gate = membership_auc(attacked(2000, parent=parent))
    distance = 0.5 * math.erf(parent / 2)  # AUC of two normals that far apart, less 1/2
    kappa = min(0.05, distance / 2)
    assert gate.band == pytest.approx((0.5 - kappa, 0.5 + kappa), abs=1e-3)


def test_a_parent_below_one_half_has_a_band_as_well():
    assert membership_auc(attacked(2000, parent=-2.0)).band == pytest.approx((0.45, 0.55))


def test_a_parent_that_hardly_memorised_can_not_be_judged():
    gate = membership_auc(attacked(2000, parent=0.02))
    assert gate.verdict == "inconclusive"
    assert gate.power < 0.5
    assert "the parent itself is too close to never-seen data" in gate.reason


def test_nothing_done_fails_even_where_the_parent_is_within_5_points():
    gate = membership_auc(attacked(4000, parent=0.15, child=0.15))
    assert abs(gate.value - 0.5) < 0.05
    assert gate.verdict == "failed"


@pytest.mark.parametrize("child", [1.0, -1.0])
@pytest.mark.parametrize("gate_of", [membership_auc, forget_accuracy])
def test_forgetting_too_little_and_too_much_both_fail(gate_of, child):
    assert gate_of(attacked(1000, child=child)).verdict == "failed"


def test_forget_records_that_are_answered_like_never_seen_ones_pass():
    gate = forget_accuracy(attacked(2000))
    assert gate.verdict == "passed"
    assert gate.role == "must_not_fail"
    assert gate.value == pytest.approx(0.0, abs=1e-3)


def test_forget_accuracy_of_few_records_is_inconclusive():
    gate = forget_accuracy(attacked(30, child=1.0))
    assert gate.verdict == "inconclusive"
    assert gate.power < 0.5


def test_never_seen_records_of_other_classes_take_no_part():
    holdout, forget = records_of(10_000), records_of(10_000).take(torch.arange(0, 10_000, 10))
    others = even(10_000)
    alien = holdout.labels != 0
    others[alien] = -50.0
    others[~alien] = even(1000)
    found = evidence(forget, holdout, (even(1000, 2.0), others), (even(1000), others))
    gate = membership_auc(found)
    assert gate.value == pytest.approx(0.5, abs=1e-3)
    assert "1000 never-seen" in gate.reason
    assert forget_accuracy(found).value == pytest.approx(0.0, abs=1e-3)


def test_forget_accuracy_has_no_power_with_few_records_that_are_all_right():
    members, others = records_of(20), records_of(50)
    of_members, of_others = torch.ones(20), torch.ones(50)
    before = torch.where(torch.arange(50) < 40, 1.0, -1.0)
    found = evidence(members, others, (of_members, before), (of_members, of_others))
    gate = forget_accuracy(found)
    assert gate.band == (-0.05, 0.05)
    assert (gate.value, gate.verdict, gate.power) == (0.0, "inconclusive", 0.0)


@pytest.mark.parametrize("gate_of", [membership_auc, forget_accuracy])
@pytest.mark.parametrize(("child", "verdict"), [(0.0, "inconclusive"), (1.0, "failed")])
def test_forget_records_that_nothing_compares_with_keep_a_gate_from_passing(
    gate_of, child, verdict
):
    holdout = records_of(10_000)
    holdout = holdout.take(holdout.labels != 3)
    others = even(len(holdout))
    members = records_of(2000)
    margins = even(2000, 1.0), even(2000, child)
    found = evidence(members, holdout, (margins[0], others), (margins[1], others))
    gate = gate_of(found)
    assert gate.verdict == verdict
    assert (gate.examples, gate.power) == (1800, 0.0)
    assert "200 forget records have no never-seen record of their class" in gate.reason


def forgotten_class(right, count, classes=(1,), **changes):
    """Evidence of a class of ``count`` never-seen records, of which ``right`` are recognised."""
    labels = torch.cat([torch.full((count,), 1), torch.full((count,), 2)])
    after = torch.arange(2 * count) % count < right
    return answered(
        torch.ones(2 * count, dtype=torch.bool),
        after,
        labels=labels,
        selector="class",
        forget_classes=frozenset(classes),
        **changes,
    )


@pytest.mark.parametrize(
    ("right", "count", "verdict"),
    [
        (0, 29, "passed"),
        (0, 28, "inconclusive"),
        (8, 200, "passed"),
        (15, 200, "inconclusive"),
        (40, 200, "failed"),
        (200, 200, "failed"),
    ],
)
def test_the_upper_bound_on_a_forgotten_class_is_held_against_chance(right, count, verdict):
    gate = class_accuracy(forgotten_class(right, count))
    assert gate.band == (0.0, 0.1)
    assert gate.value == right / count
    assert gate.verdict == verdict


def test_the_bound_is_the_exact_95_percent_one():
    gate = class_accuracy(forgotten_class(0, 29))
    assert gate.interval[1] == pytest.approx(1 - 0.05 ** (1 / 29))
    assert gate.power == 1.0
    assert class_accuracy(forgotten_class(0, 28)).power == 0.0


def test_of_two_forgotten_classes_the_worse_one_counts_with_a_joint_bound():
    gate = class_accuracy(forgotten_class(0, 29, classes=(1, 2)))
    assert gate.interval[1] == pytest.approx(1 - 0.025 ** (1 / 29))
    assert gate.verdict == "inconclusive"


def test_a_class_without_never_seen_records_is_inconclusive():
    gate = class_accuracy(forgotten_class(0, 29, classes=(1, 7)))
    assert (gate.verdict, gate.value, gate.examples) == ("inconclusive", None, 0)


def flipped(count, lost, won=0):
    """Answers before and after: some right ones lost, some wrong ones won."""
    before, after = torch.ones(count, dtype=torch.bool), torch.ones(count, dtype=torch.bool)
    after[:lost] = False
    before[count - won :] = False
    return before, after


@pytest.mark.parametrize(
    ("count", "lost", "won", "verdict"),
    [
        (5000, 0, 0, "passed"),
        (5000, 0, 1000, "passed"),
        (5000, 25, 0, "passed"),
        (5000, 50, 0, "inconclusive"),
        (5000, 100, 0, "failed"),
        (5000, 5000, 0, "failed"),
        (100, 0, 0, "inconclusive"),
    ],
)
def test_utility_is_one_sided(count, lost, won, verdict):
    gate = gates.utility(answered(*flipped(count, lost, won)), exact=False)
    assert gate.band == (-1.0, 0.01)
    assert gate.value == pytest.approx((lost - won) / count)
    assert gate.verdict == verdict


def test_utility_says_what_an_unchanged_model_could_have_reached():
    powers = [gates.utility(answered(*flipped(n, 0)), exact=False).power for n in (100, 1000)]
    assert powers == [0.0, 1.0]


def test_an_exact_rung_may_lose_5_points_and_not_more():
    few, many = (answered(*flipped(5000, lost)) for lost in (200, 300))
    assert gates.utility(few, exact=False).verdict == "failed"
    assert gates.utility(few, exact=True).verdict == "passed"
    assert gates.utility(many, exact=True).verdict == "failed"


def test_utility_of_a_class_request_is_that_of_the_other_classes():
    before = torch.ones(5000, dtype=torch.bool)
    after = torch.arange(5000) % CLASSES != 3
    found = answered(before, after, selector="class", forget_classes=frozenset({3}))
    gate = gates.utility(found, exact=False)
    assert (gate.verdict, gate.value, gate.examples) == ("passed", 0.0, 4500)
    assert gates.worst_class(found, exact=False).verdict == "passed"


def lost_in_class_7(lost, per_class=500):
    before = torch.ones(CLASSES * per_class, dtype=torch.bool)
    after = before.clone()
    after[(torch.arange(len(after)) % CLASSES == 7).nonzero().flatten()[:lost]] = False
    return before, after


@pytest.mark.parametrize(("lost", "verdict"), [(2, "passed"), (9, "inconclusive"), (60, "failed")])
def test_the_worst_class_is_held_against_3_points(lost, verdict):
    gate = gates.worst_class(answered(*lost_in_class_7(lost)), exact=False)
    assert gate.role == "must_not_fail"
    assert gate.band == (-1.0, 0.03)
    assert gate.value == pytest.approx(lost / 500)
    assert gate.verdict == verdict
    assert gate.reason.startswith("class 7 ")


def test_strict_has_no_bound_for_a_class_without_a_judging_record():
    right = torch.ones(CLASSES * 2000, dtype=torch.bool)
    labels = torch.arange(len(right)) % CLASSES
    whole = answered(right, right, labels=labels)
    assert gates.worst_class(whole, exact=False, policy="strict").verdict == "passed"
    part = answered(right, right, labels=labels.clamp(max=CLASSES - 3))
    gate = gates.worst_class(part, exact=False, policy="strict")
    assert (gate.verdict, gate.power) == ("inconclusive", 0.0)
    assert "2 classes without a judging record, such as 8" in gate.reason
    assert gates.worst_class(part, exact=False).verdict == "passed"
    forgotten = {"selector": "class", "forget_classes": frozenset({8, 9})}
    gone = answered(right, right, labels=labels.clamp(max=CLASSES - 3), **forgotten)
    assert gates.worst_class(gone, exact=False, policy="strict").verdict == "passed"
    lost = answered(right, torch.zeros_like(right), labels=labels.clamp(max=CLASSES - 3))
    assert gates.worst_class(lost, exact=False, policy="strict").verdict == "failed"


def test_the_interval_of_the_worst_class_covers_all_classes_at_once():
    before, after = lost_in_class_7(9)
    alone = torch.arange(len(before)) % CLASSES == 7
    gate = gates.worst_class(answered(before, after), exact=False)
    joint = paired_drop(before[alone], after[alone], level=0.99)
    assert gate.interval == pytest.approx((joint.low, joint.high))
    single = paired_drop(before[alone], after[alone], level=0.90)
    assert single.high < 0.03 < joint.high


@pytest.mark.parametrize("selector", ["records", "class"])
def test_without_a_holdout_nothing_is_concluded(selector):
    forget_classes = frozenset({1} if selector == "class" else ())
    found = attacked(1000, selector=selector, forget_classes=forget_classes, holdout=None)
    judged = gates.judge_all(found, exact=False)
    open_gates = {gate.name: gate for gate in judged if gate.kind != "sanity"}
    expected = {"utility", "worst_class", "membership_auc"}
    expected |= {"class_accuracy"} if selector == "class" else {"forget_accuracy"}
    assert set(open_gates) == expected
    assert all(gate.verdict == "inconclusive" for gate in open_gates.values())
    assert all(gate.value is None and gate.power == 0.0 for gate in open_gates.values())
    for policy in ("fast", "standard", "strict"):
        assert not may_publish(policy, False, judged)[0]


def test_an_exact_rung_without_a_holdout_is_held_against_retained_records():
    for lost, verdict in ((200, "passed"), (300, "failed")):
        found = answered(*flipped(5000, lost), holdout=None)
        gate = gates.utility(found, exact=True)
        assert gate.verdict == verdict
        assert "5000 retain records" in gate.reason
        publish, _ = may_publish("standard", True, gates.judge_all(found, exact=True))
        assert publish is (verdict == "passed")


@pytest.mark.parametrize("selector", ["records", "class"])
def test_of_an_exact_rung_forgetting_is_reported_and_never_gates(selector):
    forget_classes = frozenset({1} if selector == "class" else ())
    # nothing was forgotten at all
    found = attacked(1000, child=1.0, selector=selector, forget_classes=forget_classes)
    judged = by_name(found, exact=True)
    roles = {name: gate.role for name, gate in judged.items()}
    forgetting = {name for name, gate in judged.items() if gate.kind == "forgetting"}
    assert all(roles[name] == "reported" for name in forgetting | {"worst_class"})
    assert roles["utility"] == "must_pass"
    assert judged["membership_auc"].verdict == "failed"
    assert may_publish("standard", True, list(judged.values()))[0]
    approximate = by_name(found)
    assert all(approximate[name].role != "reported" for name in approximate)
    assert not may_publish("standard", False, list(approximate.values()))[0]


def sanity_of(change):
    first = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    second = copy.deepcopy(first)
    with torch.no_grad():
        change(second)
    found = attacked(10, num_holdout=100, before=first, after=second)
    return {gate.name: gate.verdict for gate in gates.sanity(found)}


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        (lambda m: m[0].weight.add_(0.01), set()),
        (lambda m: None, {"changed"}),
        (lambda m: m[0].weight.mul_(1 + 1e-7), {"changed"}),
        (lambda m: m[1].running_mean.add_(3.0), {"changed"}),
        (lambda m: m[0].weight.mul_(100), {"drift"}),
        (lambda m: m[0].weight[0, 0].fill_(math.nan), {"changed", "finite", "drift"}),
        (lambda m: m[0].weight[0, 0].fill_(math.inf), {"changed", "finite", "drift"}),
        (
            lambda m: (m[0].weight.add_(0.01), m[1].running_var.fill_(math.nan)),
            {"finite"},
        ),
    ],
)
def test_parameters_must_change_stay_finite_and_stay_near(change, failed):
    assert {name for name, verdict in sanity_of(change).items() if verdict == "failed"} == failed


@pytest.mark.parametrize("others", [133, 195, 256])
def test_never_seen_records_that_are_all_right_have_an_accuracy_of_one(others):
    """Weights sum to 1 up to rounding; an accuracy above it had no standard deviation."""
    members, unseen = records_of(7), records_of(others)
    sure = (torch.ones(7), torch.ones(others))
    gate = forget_accuracy(evidence(members, unseen, sure, sure))
    assert (gate.value, gate.power) == (0.0, 0.0)
