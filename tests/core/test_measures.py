"""Measures and intervals: closed forms at the edges, independent references, coverage."""

import math

import pytest
import torch
from scipy import stats
from sklearn.metrics import balanced_accuracy_score, roc_auc_score, roc_curve

from core import intervals, measures

P = torch.tensor([[0.7, 0.2, 0.1]] * 3, dtype=torch.float64)
LABELS = torch.tensor([0, 1, 2])


def test_modified_entropy_of_a_batch_with_all_labels():
    found = measures.modified_entropy(P.log(), LABELS)
    assert found.tolist() == pytest.approx([0.162167, 2.140867, 2.959736], abs=1e-6)


def test_modified_entropy_of_certainty_is_finite():
    logits = torch.tensor([[1000.0, 0.0], [1000.0, 0.0]])
    found = measures.modified_entropy(logits, torch.tensor([0, 1]))
    assert found[0] < 1e-9
    assert 20 < found[1] < 100


def test_entropy():
    assert measures.entropy(P.log())[0].item() == pytest.approx(0.801819, abs=1e-6)
    assert measures.entropy(torch.tensor([[1e4, 0.0]])).item() == 0.0


def test_margin_is_the_log_odds_of_the_label():
    expected = (P[0] / (1 - P[0])).log()
    assert measures.margin(P.log(), LABELS).tolist() == pytest.approx(expected.tolist())


def test_margin_does_not_saturate():
    assert measures.margin(torch.tensor([[300.0, 0.0]]), torch.tensor([0])).item() == 300.0


def test_accuracy_is_over_records_and_a_broken_row_is_wrong():
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0], [math.nan, 1.0], [0.0, 1.0]])
    assert measures.accuracy(logits, torch.tensor([0, 0, 0, 1])) == 0.5


def test_accuracy_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no records"):
        measures.accuracy(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64))


def test_accuracy_per_class_keeps_classes_apart():
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    found = measures.accuracy_per_class(logits, torch.tensor([0, 0, 1]))
    assert {label: estimate.value for label, estimate in found.items()} == {0: 0.5, 1: 0.0}


@pytest.mark.parametrize(
    ("members", "others", "expected"),
    [([1.0, 1.0], [1.0], 0.5), ([2.0], [1.0, 2.0], 0.75), ([0.0], [1.0], 0.0), ([2.0], [1.0], 1.0)],
)
def test_auc_counts_ties_half(members, others, expected):
    assert measures.membership_auc(torch.tensor(members), torch.tensor(others)) == expected


def test_auc_agrees_with_an_independent_reference():
    draw = torch.Generator().manual_seed(0)
    a = (torch.randn(300, generator=draw) + 0.3).mul(5).round()
    b = torch.randn(200, generator=draw).mul(5).round()
    truth = torch.cat([torch.ones(300), torch.zeros(200)])
    expected = roc_auc_score(truth, torch.cat([a, b]))
    assert measures.membership_auc(a, b) == pytest.approx(expected, abs=1e-12)


def test_auc_weights_count_like_repeated_records():
    draw = torch.Generator().manual_seed(0)
    a, b = torch.randn(50, generator=draw), torch.randn(40, generator=draw)
    repeats = torch.randint(1, 4, (40,), generator=draw)
    weighted = measures.membership_auc(a, b, repeats.double())
    repeated = measures.membership_auc(a, b.repeat_interleave(repeats))
    assert weighted == pytest.approx(repeated, abs=1e-12)


@pytest.mark.parametrize(("a", "b"), [([], [1.0]), ([1.0], []), ([math.nan], [1.0])])
def test_auc_without_scores_is_refused(a, b):
    with pytest.raises(ValueError, match=r"no .*members|NaN"):
        intervals.auc_interval(torch.tensor(a), torch.tensor(b))


@pytest.mark.parametrize(
    ("n", "m", "shift", "spread"),
    [
        (50, 50, 0.0, 1.0),
        (50, 50, 1.0, 1.0),
        (200, 1000, 0.0, 1.0),
        (200, 1000, 0.0, 2.0),
        (200, 1000, 1.0, 1.0),
        (200, 1000, 2.0, 1.0),
    ],
)
def test_auc_interval_covers_the_truth_as_often_as_it_says(n, m, shift, spread):
    draw = torch.Generator().manual_seed(0)
    truth = stats.norm.cdf(shift / math.sqrt(1 + spread**2))
    covered, rounds = 0, 1500
    for _ in range(rounds):
        members = spread * torch.randn(n, generator=draw) + shift
        estimate = intervals.auc_interval(members, torch.randn(m, generator=draw), level=0.95)
        covered += estimate.low <= truth <= estimate.high
    assert covered / rounds == pytest.approx(0.95, abs=0.02)


def test_separation_of_few_is_no_certainty():
    few = intervals.auc_interval(torch.ones(3), torch.zeros(1000))
    many = intervals.auc_interval(torch.ones(300), torch.zeros(1000))
    assert few.low < 0.75
    assert 0.98 < many.low < 1
    assert few.high == many.high == 1


def test_power_of_the_auc_gate_with_ten_thousand_never_seen_records():
    found = [
        intervals.equivalence_power(0.05, intervals.auc_null_sd(n, 10_000))
        for n in (50, 200, 500, 1000)
    ]
    assert found == pytest.approx([0.0, 0.56, 0.97, 1.0], abs=0.005)


def test_power_agrees_with_a_simulation():
    draw = torch.Generator().manual_seed(0)
    inside, rounds = 0, 400
    for _ in range(rounds):
        a, b = torch.randn(250, generator=draw), torch.randn(5000, generator=draw)
        estimate = intervals.auc_interval(a, b)
        inside += estimate.low >= 0.45 and estimate.high <= 0.55
    said = intervals.equivalence_power(0.05, intervals.auc_null_sd(250, 5000))
    assert inside / rounds == pytest.approx(said, abs=0.08)


def test_tpr_reads_the_threshold_off_the_others():
    others = torch.arange(200.0)
    found = measures.tpr_at_fpr(torch.tensor([197.0, 197.5, 198.0, 300.0]), others)
    assert found.value == 0.75
    assert 0 < found.low < 0.75 < found.high < 1


def test_tpr_without_hits_is_bounded_not_zero():
    found = measures.tpr_at_fpr(torch.zeros(20), torch.arange(100.0))
    assert found.value == 0
    assert found.high == pytest.approx(1 - 0.05 ** (1 / 20))


def test_tpr_needs_enough_others():
    with pytest.raises(ValueError, match="cannot show"):
        measures.tpr_at_fpr(torch.zeros(5), torch.zeros(99))


@pytest.mark.parametrize("weighted", [False, True])
def test_balanced_accuracy_agrees_with_an_independent_reference(weighted):
    draw = torch.Generator().manual_seed(0)
    members = (torch.randn(301, generator=draw) + 0.8).round(decimals=1)
    others = torch.randn(500, generator=draw).round(decimals=1)
    weights = torch.rand(500, generator=draw).double() if weighted else torch.ones(500).double()

    def half(start):
        scores = torch.cat([members[start::2], others[start::2]]).double()
        truth = torch.arange(len(scores)) < len(members[start::2])
        # Each side counts as a whole whatever its weights sum to.
        return truth, scores, torch.cat([torch.ones(int(truth.sum())), weights[start::2]])

    truth, scores, mass = half(0)
    fpr, tpr, thresholds = roc_curve(truth, scores, sample_weight=mass, drop_intermediate=False)
    threshold = thresholds[(tpr - fpr).argmax()]
    truth, scores, mass = half(1)
    expected = balanced_accuracy_score(truth, scores >= threshold, sample_weight=mass)
    found = measures.balanced_accuracy(members, others, weights)
    assert found.value == pytest.approx(expected, abs=1e-9)
    assert found.low < found.value < found.high


def test_balanced_accuracy_of_nothing_is_chance():
    """A threshold chosen on the scores that it is judged on would find something."""
    draw = torch.Generator().manual_seed(0)
    found = [
        measures.balanced_accuracy(torch.randn(20, generator=draw), torch.randn(40, generator=draw))
        for _ in range(300)
    ]
    assert sum(each.value for each in found) / 300 == pytest.approx(0.5, abs=0.02)
    assert sum(each.low < 0.5 < each.high for each in found) > 0.85 * 300


@pytest.mark.parametrize(("members", "others"), [(1, 9), (9, 1)])
def test_balanced_accuracy_needs_a_split(members, others):
    with pytest.raises(ValueError, match="choose a threshold"):
        measures.balanced_accuracy(torch.zeros(members), torch.zeros(others))


def test_ks_distance_of_weighted_records_is_that_of_repeated_ones():
    draw = torch.Generator().manual_seed(0)
    a, b = torch.randn(50, generator=draw), torch.randn(40, generator=draw)
    repeats = torch.randint(1, 4, (40,), generator=draw)
    distance, p = measures.kolmogorov_smirnov(a, b, repeats.double())
    expected = stats.ks_2samp(a.numpy(), b.repeat_interleave(repeats).numpy()).statistic
    assert distance == pytest.approx(expected, abs=1e-6)
    assert 0 <= p <= 1


def test_clopper_pearson():
    found = intervals.proportion(0, 100)
    assert (found.low, found.high) == pytest.approx((0.0, 1 - 0.05 ** (1 / 100)))


def test_paired_drop_covers_the_truth():
    draw = torch.Generator().manual_seed(0)
    covered, rounds = 0, 1500
    for _ in range(rounds):
        kind = torch.rand(300, generator=draw)
        before, after = kind < 0.86, (kind < 0.80) | (kind > 0.97)
        estimate = intervals.paired_drop(before, after, level=0.95)
        covered += estimate.low <= 0.03 <= estimate.high
    assert covered / rounds == pytest.approx(0.95, abs=0.02)


def test_paired_drop_without_any_change_has_a_width():
    right = torch.ones(20, dtype=torch.bool)
    found = intervals.paired_drop(right, right)
    assert found.value == 0
    assert found.high - found.low > 0.1


def test_difference_of_shares_covers_the_truth():
    draw = torch.Generator().manual_seed(0)
    covered, rounds = 0, 1500
    for _ in range(rounds):
        first = float((torch.rand(80, generator=draw) < 0.9).double().mean())
        second = float((torch.rand(200, generator=draw) < 0.8).double().mean())
        estimate = intervals.proportion_difference(first, 80, second, 200, level=0.95)
        covered += estimate.low <= 0.1 <= estimate.high
    assert covered / rounds == pytest.approx(0.95, abs=0.02)
