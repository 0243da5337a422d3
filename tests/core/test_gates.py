"""Gates: verdicts, bands and power, on logits made by hand."""

import math

import pytest
import torch
from torch import nn

from core import gates, verdicts
from core.data import Records
from core.forgetting import class_accuracy, forget_accuracy, forgetting, membership_auc
from core.problem import Evidence

C = 4


def records(labels):
    return Records(
        images=torch.zeros(len(labels), 1), labels=labels, rows=torch.arange(len(labels))
    )


def logits(labels, margins):
    """Logits whose margin is ``margins``; negative ones are wrong."""
    found = torch.zeros(len(labels), C)
    found[torch.arange(len(labels)), labels] = margins.float()
    return found


def normal(count, mean, seed):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, generator=draw) + mean


def judged(
    num_forget=1000,
    num_holdout=4000,
    before=3.0,
    after=1.0,
    holdout=1.0,
    holdout_before=1.0,
    **changes,
):
    """Evidence with normal margins of these means; the same holdout draws before and after."""
    labels, others = torch.arange(num_forget) % C, torch.arange(num_holdout) % C
    scores = {
        "before": {
            "forget": logits(labels, normal(num_forget, before, 1)),
            "holdout": logits(others, normal(num_holdout, holdout_before, 2)),
        },
        "after": {
            "forget": logits(labels, normal(num_forget, after, 1)),
            "holdout": logits(others, normal(num_holdout, holdout, 2)),
        },
    }
    base = {
        "before": nn.Linear(2, 2),
        "after": nn.Linear(2, 2),
        "forget": records(labels),
        "retain": None,
        "holdout": records(others),
        "selector": "records",
        "num_classes": C,
        "forget_classes": frozenset(),
        "scores": scores,
    }
    return Evidence(**(base | changes))


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ((-0.1, 0.1), "passed"),
        ((-0.2, 0.2), "passed"),
        ((0.1, 0.3), "inconclusive"),
        ((-0.5, 0.5), "inconclusive"),
        ((0.21, 0.5), "failed"),
        ((-0.5, -0.21), "failed"),
    ],
)
def test_interval_and_band_make_the_verdict(interval, expected):
    assert verdicts.verdict_of(interval, (-0.2, 0.2)) == expected


@pytest.mark.parametrize(("after", "expected"), [(1.0, "passed"), (2.0, "failed"), (0.0, "failed")])
def test_membership_auc_is_two_sided(after, expected):
    gate = membership_auc(judged(after=after))
    assert (gate.verdict, gate.role, gate.band) == (expected, "must_pass", (0.45, 0.55))
    assert gate.power > 0.9


def test_three_records_have_no_power_and_the_reason_says_so():
    for after in (1.0, 5.0):
        gate = membership_auc(judged(num_forget=3, after=after))
        assert gate.verdict == "inconclusive"
        assert gate.power == 0.0
        assert "no power with 3 records" in gate.reason


@pytest.mark.parametrize(
    ("num_forget", "power"), [(50, 0.0), (200, 0.56), (500, 0.97), (1000, 1.0)]
)
def test_power_with_ten_thousand_never_seen_records(num_forget, power):
    gate = membership_auc(judged(num_forget=num_forget, num_holdout=10_000))
    assert gate.power == pytest.approx(power, abs=0.005)
    assert (gate.verdict == "inconclusive") is (power < 0.5)


def test_the_band_is_half_the_parents_own_distance():
    gate = membership_auc(judged(before=1.1, after=1.1))
    parent = gate.value
    assert 0.5 < parent < 0.55
    assert gate.band[1] - 0.5 == pytest.approx((parent - 0.5) / 2)
    assert gate.verdict == "inconclusive"
    assert "parent itself is too close" in gate.reason


def test_the_class_mix_of_the_forget_set_is_matched():
    """Class 0 is easy for everyone; a forget set full of it must not look remembered."""
    evidence = judged()
    easy = torch.tensor([6.0, 0.0, 0.0, 0.0])
    skewed = torch.where(torch.arange(1000) < 900, 0, 1)
    others = evidence.holdout.labels
    scores = {
        model: {
            "forget": logits(skewed, normal(1000, extra, 3) + easy[skewed]),
            "holdout": logits(others, normal(4000, 0.0, 4) + easy[others]),
        }
        for model, extra in (("before", 2.0), ("after", 0.0))
    }
    matched = judged(forget=records(skewed), scores=scores)
    assert membership_auc(matched).verdict == "passed"
    assert forget_accuracy(matched).verdict == "passed"


@pytest.mark.parametrize(("after", "expected"), [(1.0, "passed"), (3.0, "failed"), (0.0, "failed")])
def test_forget_accuracy_is_two_sided_and_never_required(after, expected):
    gate = forget_accuracy(judged(num_forget=4000, after=after))
    assert (gate.verdict, gate.role) == (expected, "must_not_fail")


@pytest.mark.parametrize(
    ("holdout", "exact", "expected"),
    [
        (1.0, False, "passed"),
        (1.5, False, "passed"),
        (0.96, False, "inconclusive"),
        (0.85, False, "failed"),
        (0.85, True, "passed"),
        (0.5, True, "failed"),
    ],
)
def test_utility_is_one_sided_and_wider_for_an_exact_rung(holdout, exact, expected):
    gate = gates.utility(judged(holdout=holdout), exact=exact)
    assert gate.verdict == expected
    assert gate.band[1] == (0.05 if exact else 0.01)
    assert gate.role == "must_pass"


def test_utility_of_a_class_request_looks_at_the_other_classes():
    evidence = judged(selector="class", forget_classes=frozenset({2}))
    lost = evidence.holdout.labels == 2
    evidence.scores["after"]["holdout"][lost] = 0
    evidence.scores["after"]["holdout"][lost, 0] = 9
    gate = gates.utility(evidence, exact=False)
    assert (gate.verdict, gate.examples) == ("passed", 3000)
    assert gates.worst_class(evidence, exact=False).verdict == "passed"


def test_worst_class_sees_what_the_average_hides():
    evidence = judged()
    lost = (evidence.holdout.labels == 2).nonzero().flatten()[:60]
    evidence.scores["after"]["holdout"][lost] = torch.tensor([0.0, 9.0, 0.0, 0.0])
    gate = gates.worst_class(evidence, exact=False)
    assert (gate.verdict, gate.role) == ("failed", "must_not_fail")
    assert gate.value == pytest.approx(60 / 1000, abs=0.02)
    assert "class 2" in gate.reason
    assert gates.worst_class(evidence, exact=True).role == "reported"


def test_worst_class_interval_covers_all_classes_at_once():
    draw = torch.Generator().manual_seed(0)
    wrong, rounds = 0, 60
    for _ in range(rounds):
        evidence = judged(num_holdout=800)
        labels = evidence.holdout.labels
        for model in ("before", "after"):
            margins = torch.where(torch.rand(800, generator=draw) < 0.8, 1.0, -1.0)
            evidence.scores[model]["holdout"] = logits(labels, margins)
        wrong += gates.worst_class(evidence, exact=False).interval[0] > 0
    assert wrong / rounds <= 0.15


def class_evidence(num_forget=1000, right=0, num_holdout=4000, **changes):
    evidence = judged(
        num_holdout=num_holdout,
        selector="class",
        forget_classes=frozenset({1}),
        forget=records(torch.ones(num_forget, dtype=torch.int64)),
        **changes,
    )
    of_class = (evidence.holdout.labels == 1).nonzero().flatten()
    margins = torch.where(torch.arange(len(of_class)) < right, 2.0, -2.0)
    labels = torch.ones(len(of_class), dtype=torch.int64)
    evidence.scores["after"]["holdout"][of_class] = logits(labels, margins)
    return evidence


@pytest.mark.parametrize(
    ("right", "expected"), [(0, "passed"), (200, "passed"), (245, "inconclusive"), (300, "failed")]
)
def test_class_accuracy_is_held_against_chance(right, expected):
    gate = class_accuracy(class_evidence(right=right))
    assert (gate.verdict, gate.band, gate.role) == (expected, (0.0, 0.25), "must_pass")


def test_class_accuracy_needs_enough_records():
    gate = class_accuracy(class_evidence(num_holdout=32))
    assert (gate.value, gate.verdict, gate.power) == (0.0, "inconclusive", 0.0)


def test_one_of_two_forgotten_classes_may_not_hide_the_other():
    evidence = class_evidence(right=400)
    both = Evidence(**{**vars(evidence), "forget_classes": frozenset({1, 3})})
    both.scores["after"]["holdout"][both.holdout.labels == 3] = torch.tensor([9.0, 0, 0, 0])
    assert class_accuracy(both).verdict == "failed"


def test_without_a_holdout_everything_is_inconclusive_with_a_reason():
    bare = Evidence(**{**vars(judged()), "holdout": None})
    found = [gate for gate in gates.judge_all(bare, exact=False) if gate.kind != "sanity"]
    assert len(found) == 4
    for gate in found:
        assert (gate.verdict, gate.value) == ("inconclusive", None)
        assert "no holdout" in gate.reason


def test_an_exact_rung_without_a_holdout_is_held_against_retained_records():
    evidence = judged()
    scores = {m: {**s, "retain": s["holdout"]} for m, s in evidence.scores.items()}
    bare = Evidence(
        **{**vars(evidence), "holdout": None, "retain": evidence.holdout, "scores": scores}
    )
    assert gates.utility(bare, exact=True).verdict == "passed"
    assert gates.utility(bare, exact=False).verdict == "inconclusive"
    for model in ("before", "after"):
        scores[model]["retain"] = logits(
            evidence.holdout.labels, torch.full((4000,), 1.0 if model == "before" else -1.0)
        )
    assert gates.utility(bare, exact=True).verdict == "failed"


def test_forgetting_gates_of_an_exact_rung_are_only_reported():
    assert {gate.role for gate in forgetting(judged(), exact=True)} == {"reported"}
    assert {gate.role for gate in forgetting(judged(), exact=False)} != {"reported"}


def sanity_of(change):
    before = nn.Linear(3, 3)
    after = nn.Linear(3, 3)
    after.load_state_dict(before.state_dict())
    with torch.no_grad():
        change(after)
    evidence = Evidence(**{**vars(judged()), "before": before, "after": after})
    return {gate.name: gate.verdict for gate in gates.sanity(evidence)}


def test_sanity():
    unchanged = sanity_of(lambda m: None)
    assert unchanged == {"changed": "failed", "finite": "passed", "drift": "passed"}
    assert sanity_of(lambda m: m.weight.add_(0.1))["changed"] == "passed"
    assert sanity_of(lambda m: m.weight.mul_(1e-8).add_(1e3))["drift"] == "failed"
    broken = sanity_of(lambda m: m.weight.fill_(math.nan))
    assert broken == {"changed": "failed", "finite": "failed", "drift": "failed"}


def test_scores_that_are_no_numbers_are_no_evidence():
    evidence = judged()
    evidence.scores["after"]["forget"][0] = math.nan
    gate = membership_auc(evidence)
    assert (gate.verdict, gate.value) == ("inconclusive", None)
