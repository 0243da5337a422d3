"""Audits against an oracle: closed forms, ideal values, the noise floor."""

import dataclasses
import math

import pytest
import torch
from scipy import stats

from core.audits import audits
from core.distances import (
    Weighted,
    activation_distance,
    alike,
    ends,
    jensen_shannon,
    mean_difference,
    mean_interval,
)
from core.errors import MissingEvidence
from core.measures import accuracy, margin
from core.svc import efficacy
from tests.core import cases
from tests.worlds import trained


def evidence(after="oracle", num_oracles=1):
    world = cases.small_world()
    forget = cases.first(world, 60)
    oracles = tuple(cases.oracle(world, forget, seed=5 + n) for n in range(num_oracles))
    model = {"oracle": oracles[0], "parent": trained(world), "fresh": world.fresh(3)}[after]
    return cases.evidence(world, model, forget, oracles=oracles)


def run(name, given):
    return {(f.measure, f.scope): f for f in audits[name].run(given, audits[name].config())}


def test_jensen_shannon_is_in_bits():
    p, q = torch.tensor([[0.7, 0.2, 0.1]]), torch.tensor([[0.1, 0.3, 0.6]])
    m = (p + q) / 2
    expected = sum((x * (x / m).log2()).sum().item() / 2 for x in (p, q))
    assert jensen_shannon(p.log(), q.log()).item() == pytest.approx(expected, abs=1e-6)
    assert jensen_shannon(q.log(), p.log()).item() == pytest.approx(expected, abs=1e-6)
    apart = jensen_shannon(torch.tensor([[1.0, 0.0]]).log(), torch.tensor([[0.0, 1.0]]).log())
    assert apart.item() == 1.0
    assert torch.isnan(jensen_shannon(torch.tensor([[torch.nan, 0.0]]), p[:, :2])).all()


def test_activation_distance_is_euclidean():
    p, q = torch.tensor([[0.7, 0.2, 0.1]]), torch.tensor([[0.1, 0.3, 0.6]])
    expected = math.sqrt(0.36 + 0.01 + 0.25)
    assert activation_distance(p.log(), q.log()).item() == pytest.approx(expected, abs=1e-6)


def test_intervals_of_means_cover_as_often_as_they_say():
    draw = torch.Generator().manual_seed(0)
    weights = torch.rand(80, generator=draw).double()
    weights = weights / weights.sum()
    covered = [0, 0]
    for _ in range(400):
        first = Weighted(torch.randn(80, generator=draw) + 3, weights)
        second = alike(2 * torch.randn(50, generator=draw))
        found = mean_interval(first)
        covered[0] += found.low < 3 < found.high
        found = mean_difference(first, second)
        covered[1] += found.low < 3 < found.high
    assert all(0.85 < count / 400 < 0.95 for count in covered)


def test_one_record_tells_no_interval():
    one = alike(torch.tensor([0.3]))
    assert mean_interval(one).value == pytest.approx(0.3)
    assert ends(mean_interval(one)) is None
    assert ends(mean_difference(one, alike(torch.rand(50)))) is None
    assert ends(mean_interval(alike(torch.tensor([0.3, 0.3])))) == pytest.approx((0.3, 0.3))
    whole = evidence("parent", 2)
    alone = run("oracle_distance", whole.of_forget(torch.tensor([0])))
    for measure in ("jensen_shannon", "jensen_shannon_over_floor"):
        assert alone[measure, "forget"].interval is None
        assert alone[measure, "forget"].value is not None
        assert alone[measure, "holdout"].interval is not None


def test_an_oracle_is_at_no_distance_from_itself():
    findings = run("oracle_distance", evidence())
    for role in ("forget", "retain", "holdout"):
        assert findings["jensen_shannon", role].value == pytest.approx(0, abs=1e-12)
        assert findings["activation_distance", role].value == pytest.approx(0, abs=1e-12)
    assert findings["jensen_shannon", "forget"].reference_name == "before"


def test_the_noise_floor_is_the_distance_between_two_oracles():
    given = evidence("parent", 2)
    findings = run("oracle_distance", given)
    both = [given.scores[name]["forget"] for name in ("oracle", "oracle_2")]
    floor = float(jensen_shannon(*both).mean())
    found = findings["jensen_shannon", "forget"]
    assert found.reference == pytest.approx(floor)
    ratio = findings["jensen_shannon_over_floor", "forget"]
    assert ratio.value == pytest.approx(found.value / floor)
    assert ratio.interval[0] > 1.0


def test_margins_are_compared_with_the_oracle_as_distributions():
    given = evidence("parent", 2)
    findings = run("oracle_distance", given)
    for role in ("forget", "retain", "holdout"):
        labels = getattr(given, role).labels
        margins = {name: margin(given.scores[name][role], labels).numpy() for name in given.scores}
        for name, told in (("after", "value"), ("oracle_2", "reference")):
            expected = stats.ks_2samp(margins[name], margins["oracle"])
            distance, log_p = (
                getattr(findings[measure, role], told) for measure in ("ks_distance", "ks_log10_p")
            )
            assert distance == pytest.approx(expected.statistic)
            assert log_p == pytest.approx(math.log10(expected.pvalue))
    assert findings["ks_distance", "forget"].reference_name == "second oracle"
    same = run("oracle_distance", evidence())
    assert (same["ks_distance", "forget"].value, same["ks_log10_p", "forget"].value) == (0.0, 0.0)


def test_a_p_value_beyond_all_numbers_has_a_logarithm():
    given = evidence("fresh")
    count = 3000
    scores = {
        name: {"forget": torch.tensor([[value, 0.0, 0.0]]).expand(count, 3)}
        for name, value in (("before", 1.0), ("after", 9.0), ("oracle", 1.0))
    }
    forget = dataclasses.replace(
        given.forget,
        images=torch.zeros(count, 1),
        labels=torch.zeros(count, dtype=torch.int64),
        rows=torch.arange(count),
    )
    found = run("oracle_distance", dataclasses.replace(given, forget=forget, scores=scores))
    assert found["ks_distance", "forget"].value == 1.0
    assert -400 < found["ks_log10_p", "forget"].value < -300


def test_gaps_of_an_oracle_to_itself_are_none():
    values = {measure: f.value for (measure, _), f in run("avg_gap", evidence()).items()}
    assert values.pop("tow") == values.pop("tow_mia") == 1.0
    assert set(values.values()) == {0.0}


def test_gaps_are_their_definitions():
    given = evidence("fresh", 2)
    findings = {measure: f for (measure, _), f in run("avg_gap", given).items()}
    records = {"forget": given.forget, "retain": given.retain, "holdout": given.holdout}

    def gap(role):
        after, ideal = (
            accuracy(given.scores[m][role], records[role].labels) for m in ("after", "oracle")
        )
        return abs(after - ideal)

    gaps = [gap("forget"), gap("retain"), gap("holdout")]
    mia = [efficacy(given, model, "confidence").value for model in ("after", "oracle")]
    gaps.append(abs(mia[0] - mia[1]))
    assert len(set(gaps)) == 4
    names = ("ua_gap", "ra_gap", "ta_gap", "mia_efficacy_gap")
    assert [findings[n].value for n in names] == pytest.approx([100 * g for g in gaps])
    assert findings["avg_gap"].value == pytest.approx(25 * sum(gaps))
    tow = math.prod(1 - g for g in gaps[:3])
    assert findings["tow"].value == pytest.approx(tow)
    assert findings["tow_mia"].value == pytest.approx(tow / (1 - gaps[0]) * (1 - gaps[3]))
    assert findings["avg_gap"].reference_name == "second oracle"
    assert findings["avg_gap"].value > findings["avg_gap"].reference


def test_accuracy_of_a_class_task_leaves_the_forgotten_class_out():
    world = cases.small_world()
    ideal = cases.oracle(world, world.train.labels == 1)
    given = cases.class_evidence(world, trained(world), 1, oracles=(ideal,))
    findings = {measure: f for (measure, _), f in run("avg_gap", given).items()}
    stays = given.holdout.labels != 1
    after, golden = (
        accuracy(given.scores[m]["holdout"][stays], given.holdout.labels[stays])
        for m in ("after", "oracle")
    )
    assert findings["ta_gap"].value == pytest.approx(100 * abs(after - golden))


def test_without_a_never_seen_record_of_a_class_that_stays_there_is_no_gap():
    world = cases.small_world()
    ideal = cases.oracle(world, world.train.labels == 1)
    given = cases.class_evidence(world, trained(world), 1, oracles=(ideal,))
    gone = given.holdout.labels == 1
    scores = {model: {**of, "holdout": of["holdout"][gone]} for model, of in given.scores.items()}
    given = dataclasses.replace(given, holdout=given.holdout.take(gone), scores=scores)
    with pytest.raises(MissingEvidence, match="class that stays"):
        run("avg_gap", given)


@pytest.mark.parametrize("name", ["avg_gap", "oracle_distance"])
def test_without_an_oracle_nothing_is_made_up(name):
    with pytest.raises(MissingEvidence, match="no oracle"):
        run(name, dataclasses.replace(evidence(), oracles=()))
