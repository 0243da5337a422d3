"""Per-record attacks: formulas against plain loops, calibration, and who is told apart."""

import dataclasses
import math

import pytest
import torch
from scipy import stats
from torch.nn import functional as F

from core.audit_gates import per_record_attack
from core.audits import audits
from core.audits.lira import lira_scores
from core.audits.rmia import rmia_scores
from core.bank import References
from core.errors import MissingEvidence
from core.measures import membership_auc
from core.perrecord import clearing_power, detection_power, tail
from tests.core import cases
from tests.worlds import gaussian_world, trained


def references(models=4, forget=6, holdout=9, seed=0):
    draw = torch.Generator().manual_seed(seed)
    first = torch.rand(models // 2, forget, generator=draw) < 0.5
    second = torch.rand(models // 2, holdout, generator=draw) < 0.5
    return References(
        forget=2 * torch.randn(models, forget, generator=draw),
        forget_out=torch.stack([first, ~first], 1).flatten(0, 1),
        holdout=2 * torch.randn(models, holdout, generator=draw),
        holdout_out=torch.stack([second, ~second], 1).flatten(0, 1),
    )


def own(forget=6, holdout=9, seed=1):
    draw = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(forget, generator=draw), 2 * torch.randn(holdout, generator=draw)


@pytest.mark.parametrize(("a", "gamma"), [(0.3, 1.0), (0.0, 2.0), (1.0, 1.5)])
def test_rmia_is_the_formula(a, gamma):
    given = references()
    members, others = own()

    def ratio(value, margins, out):
        unseen = [1 / (1 + math.exp(-m)) for m, o in zip(margins, out, strict=True) if o]
        expected = 0.5 * ((1 + a) * sum(unseen) / len(unseen) + (1 - a))
        return 1 / (1 + math.exp(-value)) / expected

    ratios = [
        ratio(v, given.holdout[:, z].tolist(), given.holdout_out[:, z].tolist())
        for z, v in enumerate(others.tolist())
    ]
    expected = [
        sum(ratio(v, given.forget[:, x].tolist(), given.forget_out[:, x].tolist()) / r >= gamma
            for r in ratios) / len(ratios)
        for x, v in enumerate(members.tolist())
    ]  # fmt: skip
    unseen = [
        sum(r / other >= gamma for j, other in enumerate(ratios) if j != i) / (len(ratios) - 1)
        for i, r in enumerate(ratios)
    ]
    found = rmia_scores(members, others, given, a=a, gamma=gamma)
    assert found[0].tolist() == pytest.approx(expected)
    assert found[1].tolist() == pytest.approx(unseen)


def test_models_that_saw_the_record_play_no_part():
    given, (members, others) = references(), own()
    changed = dataclasses.replace(given, forget=given.forget + 50 * ~given.forget_out)
    for score, options in (
        (rmia_scores, {"a": 0.3, "gamma": 1.0}),
        (lira_scores, {"sigma_floor": 1e-3}),
    ):
        first = score(members, others, given, **options)
        second = score(members, others, changed, **options)
        assert torch.equal(first[0], second[0])


def test_lira_with_few_models_shares_one_variance():
    given, (members, others) = references(), own()
    squares, freedom, means = 0.0, 0, {}
    for side, margins, out in (
        ("forget", given.forget, given.forget_out),
        ("holdout", given.holdout, given.holdout_out),
    ):
        for x in range(margins.shape[1]):
            unseen = margins[out[:, x], x].double()
            means[side, x] = float(unseen.mean())
            squares += float(((unseen - unseen.mean()) ** 2).sum())
            freedom += len(unseen) - 1
    sd = math.sqrt(squares / freedom)
    found = lira_scores(members, others, given, sigma_floor=1e-3)
    for side, values, z in (("forget", members, found[0]), ("holdout", others, found[1])):
        expected = [(v - means[side, x]) / sd for x, v in enumerate(values.tolist())]
        assert z.tolist() == pytest.approx(expected, rel=1e-5)


def test_lira_with_many_models_has_a_variance_per_record_and_a_floor():
    given, (members, others) = references(models=64), own()
    given.forget[:, 0] = 1.0
    found = lira_scores(members, others, given, sigma_floor=0.01)[0]
    assert found[0].item() == pytest.approx((members[0].item() - 1) / 0.01, rel=1e-5)
    unseen = given.forget[given.forget_out[:, 3], 3]
    expected = (members[3] - unseen.mean()) / unseen.std()
    assert found[3].item() == pytest.approx(expected.item(), rel=1e-5)


def test_lira_needs_two_models_without_each_record():
    with pytest.raises(MissingEvidence, match="four reference models"):
        lira_scores(*own(), references(models=2), sigma_floor=1e-3)


def test_the_threshold_leaves_the_rate_of_never_seen_records():
    others = torch.arange(1000.0)
    found = tail(others[::10] + 0.5, others, torch.ones(1000), 0.05)
    assert (found.count, found.examples, found.rate) == (5, 100, pytest.approx(0.05))
    weighted = tail(others, others, (others >= 990).double(), 0.5)
    assert weighted.count == 5


def test_powers_are_binomial():
    allowed = max(k for k in range(31) if stats.binomtest(k, 30).proportion_ci(0.9).high <= 0.4)
    assert clearing_power(30, 0.05, 0.4) == pytest.approx(stats.binom.cdf(allowed, 30, 0.05))
    needed = min(k for k in range(31) if stats.binom.sf(k - 1, 30, 0.05) <= 0.05)
    assert detection_power(30, 0.05, 0.6) == pytest.approx(stats.binom.sf(needed - 1, 30, 0.6))


def of(findings, measure):
    (finding,) = [f for f in findings if f.measure == measure]
    return finding


@pytest.mark.parametrize("name", ["rmia", "lira"])
def test_a_memorising_parent_is_told_apart_and_an_oracle_is_not(name):
    world = gaussian_world(num_train=400, num_holdout=800, epochs=30, hidden=64)
    forget, bank = cases.first(world, 80), cases.bank(world)
    audit = audits[name]
    parent = audit.run(cases.evidence(world, trained(world), forget, bank=bank), audit.config())
    ideal = cases.oracle(world, forget)
    oracle = audit.run(cases.evidence(world, ideal, forget, bank=bank), audit.config())
    assert of(parent, "auc").interval[0] > 0.5
    assert abs(of(oracle, "auc").value - 0.5) < (of(parent, "auc").value - 0.5) / 2
    assert of(parent, "exceeding_share").value > 2 * of(oracle, "exceeding_share").value
    low, high = of(oracle, "exceeding_share").interval
    assert low < 0.05 < high
    assert of(parent, "exceeding_share").verdict != "passed"
    assert of(oracle, "exceeding_share").verdict != "failed"


@pytest.mark.parametrize(
    ("drop", "verdict", "auc"), [(0, "failed", (0.7, 0.9)), (4, "passed", (0.0, 0.3))]
)
def test_few_records_that_stand_out_by_how_badly_they_are_known_pass_the_count(drop, verdict, auc):
    """Why the gate may not stand in for a population attack that has no power."""
    world = gaussian_world(num_train=400, num_holdout=800, epochs=30, hidden=64)
    base = cases.evidence(world, trained(world), cases.first(world, 80), bank=cases.bank(world))
    few = base.of_forget(torch.arange(50))
    after = {role: logits.clone() for role, logits in few.scores["before"].items()}
    after["forget"][torch.arange(50), few.forget.labels] -= drop
    few = dataclasses.replace(few, scores={**few.scores, "after": after})
    findings = audits["rmia"].run(few, audits["rmia"].config())
    gate = per_record_attack(findings)
    assert (gate.verdict, gate.power > 0.5) == (verdict, True)
    found = of(findings, "auc").interval
    assert auc[0] < found[0] < found[1] < auc[1]


@pytest.mark.parametrize("score", [rmia_scores, lira_scores])
def test_records_that_nobody_remembers_score_like_never_seen_ones(score):
    options = {"a": 0.3, "gamma": 1.0} if score is rmia_scores else {"sigma_floor": 1e-3}
    draw = torch.Generator().manual_seed(0)
    beyond, aucs = 0, []
    for seed in range(60):
        given = references(4, 100, 400, seed)
        hard = [3 * torch.randn(n, generator=draw) for n in (100, 400)]
        given = dataclasses.replace(
            given,
            # models that were trained on a forget record know it; the others do not
            forget=given.forget + hard[0] + 9 * ~given.forget_out,
            holdout=given.holdout + hard[1],
        )
        values = [h + 2 * torch.randn(len(h), generator=draw) for h in hard]
        found = score(*values, given, **options)
        aucs.append(membership_auc(*found))
        beyond += tail(*found, torch.ones(400), 0.05).count
    assert sum(aucs) / 60 == pytest.approx(0.5, abs=0.012)
    assert beyond / 6000 == pytest.approx(0.05, abs=0.012)


def handmade(remembered, after, count=5):
    """Evidence of a few forget records whose margins are given, over 400 never-seen ones."""
    world = gaussian_world(num_train=240, num_holdout=1000, hidden=8, epochs=1)
    base = cases.evidence(world, world.fresh(), cases.first(world, count))
    draw = torch.Generator().manual_seed(0)
    unseen = torch.randn(len(base.holdout), generator=draw)
    margins = {"before": remembered, "after": after}
    scores = {
        model: {"forget": logits(base.forget, value), "holdout": logits(base.holdout, unseen)}
        for model, value in margins.items()
    }
    given = references(4, count, len(base.holdout))
    flat = dataclasses.replace(
        given, forget=torch.zeros_like(given.forget), holdout=torch.zeros_like(given.holdout)
    )
    return dataclasses.replace(base, scores=scores, references=flat)


def logits(records, margins):
    others = torch.full((len(records), 4), -math.log(3))
    values = margins * torch.ones(len(records))
    return others.scatter(1, records.labels[:, None], values[:, None].float())


def judged(evidence, **options):
    return audits["rmia"].run(evidence, audits["rmia"].config(**options))


def test_five_records_can_be_cleared_where_the_parent_remembered_them_all():
    cleared = of(judged(handmade(torch.tensor(9.0), torch.tensor(0.0))), "exceeding_share")
    assert (cleared.value, cleared.verdict) == (0.0, "passed")
    kept = judged(handmade(torch.tensor(9.0), torch.tensor(9.0)))
    assert (of(kept, "exceeding_share").value, of(kept, "exceeding_share").verdict) == (1, "failed")
    assert of(kept, "detection").value == pytest.approx(1.0)
    assert of(kept, "worst_record_p_value").value < 0.05
    assert of(kept, "power").value == pytest.approx(0.95**5, abs=0.02)


def test_records_that_nothing_compares_with_keep_an_attack_from_clearing_the_rest():
    base = handmade(torch.tensor(9.0), torch.tensor(0.0))
    alien = dataclasses.replace(
        base.forget.take([0]), labels=torch.tensor([7]), rows=torch.tensor([-1])
    )
    at = torch.tensor([0, 1, 2, 3, 4, 0])
    scores = {
        model: {
            "forget": F.pad(of["forget"][at], (0, 4), value=-9.0),
            "holdout": F.pad(of["holdout"], (0, 4), value=-9.0),
        }
        for model, of in base.scores.items()
    }
    given = dataclasses.replace(
        base,
        forget=base.forget.join(alien),
        scores=scores,
        references=base.references.of_forget(at),
    )
    found = judged(given)
    for measure in ("exceeding_share", "below_share"):
        assert of(judged(base), measure).verdict == "passed"
        assert (of(found, measure).verdict, of(found, measure).examples) == ("inconclusive", 5)
        assert "1 forget records have no never-seen record" in of(found, measure).reason
    assert of(found, "power").value == 0.0


def test_a_single_record_is_never_cleared():
    alone = judged(handmade(torch.tensor(9.0), torch.tensor(0.0), count=1))
    assert of(alone, "exceeding_share").verdict == "inconclusive"
    assert of(alone, "power").value == 0.0
    assert "1 records nobody remembers" in of(alone, "power").reason


def test_records_that_look_worse_than_unseen_are_caught_on_the_other_side():
    worse = judged(handmade(torch.tensor(9.0), torch.tensor(-9.0)))
    assert of(worse, "exceeding_share").verdict == "passed"
    assert of(worse, "below_share").verdict == "failed"


def test_too_few_never_seen_records_for_the_rate():
    with pytest.raises(MissingEvidence, match="cannot show"):
        judged(handmade(torch.tensor(9.0), torch.tensor(0.0)), rate=1e-4)
