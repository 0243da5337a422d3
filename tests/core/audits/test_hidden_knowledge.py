"""Relearning, probes and prototypes: what a cut head or moved labels leave behind is found."""

import copy
import dataclasses
import math

import pytest
import torch

from core.audits import audits, run_chosen
from core.audits.linear_probe import LinearProbeConfig, _sides, probe_auc
from core.audits.relearn_time import RelearnTimeConfig, _against_unseen, known, steps_to_learn
from core.errors import OutOfTime
from core.scores import gather
from tests.core import cases
from tests.worlds import CPU, digits_world, gaussian_world, trained


def world():
    return gaussian_world(num_train=240, num_holdout=240, hidden=64, epochs=40)


def cut(model, label):
    """The cheap trick: the class's logit is pushed down, everything else stays."""
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed[-1].bias[label] -= 100
    return changed


def of(findings, measure):
    (finding,) = [f for f in findings if f.measure == measure]
    return finding


def run(name, evidence, **options):
    return run_chosen(evidence, [audits[name].config(**options)])


def relearned(after, forget, **options):
    quick = {"records": 60, "repeats": 3, "rate": 0.5} | options
    return run("relearn_time", cases.evidence(world(), after, forget), **quick)


def test_relearning_takes_an_oracle_as_long_as_never_seen_records():
    forget = cases.first(world(), 60)
    found = of(relearned(cases.oracle(world(), forget), forget), "relearn_ratio")
    assert found.interval[0] < 1 < found.interval[1]
    assert found.verdict != "failed"


def test_a_probe_of_a_class_looks_at_a_sample_of_a_sorted_holdout():
    given = cases.class_evidence(world(), world().fresh(), 2)
    given = dataclasses.replace(
        given, holdout=given.holdout.take(given.holdout.labels.argsort(stable=True))
    )
    gone = given.holdout.labels == 2
    whole = _sides(given, LinearProbeConfig())
    for side, mask in zip(whole, (gone, ~gone), strict=True):
        assert torch.equal(side.rows, given.holdout.take(mask).rows)
    first, again, other = (
        _sides(dataclasses.replace(given, seed=seed), LinearProbeConfig(most_records=20))
        for seed in (1, 1, 2)
    )
    assert [len(side) for side in first] == [20, 20]
    assert set(first[1].labels.tolist()) == {0, 1, 3}
    for side, same, another in zip(first, again, other, strict=True):
        assert torch.equal(side.rows, same.rows)
        assert not torch.equal(side.rows, another.rows)


def test_never_seen_records_in_place_of_forget_ones_are_within_the_interval():
    draw = torch.Generator().manual_seed(0)
    inside = 0
    for _ in range(300):
        own, other = torch.randn(1, generator=draw).repeat(5), torch.randn(5, generator=draw)
        found = _against_unseen(own, other, num_forget=50, pool=10**9, count=50)
        inside += found.low < 1 < found.high
    assert 0.86 < inside / 300 < 0.94


def test_draws_that_are_nearly_all_records_tell_nothing():
    forget = cases.first(world(), 200)
    given = cases.evidence(world(), cases.oracle(world(), forget), forget)
    found = of(run("relearn_time", given, repeats=2), "relearn_ratio")
    assert found.verdict == "inconclusive"
    assert "too few to draw" in found.reason


def test_a_parent_needs_no_relearning():
    found = of(relearned(trained(world()), cases.first(world(), 60)), "relearn_ratio")
    assert found.value < 0.2
    assert found.verdict == "failed"


def test_steps_are_those_after_which_the_records_are_known():
    given = cases.evidence(world(), world().fresh(), cases.first(world(), 60))
    records = given.forget
    config = RelearnTimeConfig(most_steps=50, rate=1.0)

    def steps(target, model=given.after):
        return steps_to_learn(model, records, target, given, config, 0)

    start = known(gather(given.after, records, batch_size=64, device=CPU), records.labels)
    assert steps(start) == 0.0
    assert 0 < steps(start + 1e-4) < 1
    taken = [steps(target) for target in (0.4, 0.5, 0.6)]
    assert taken == sorted(taken)
    assert taken[0] > 1
    assert steps(1.0) == math.inf


def test_the_anamnesis_index_of_an_oracle_is_one():
    forget = cases.first(world(), 60)
    ideal = cases.oracle(world(), forget)
    given = cases.evidence(world(), ideal, forget, oracles=(ideal,))
    found = of(run("relearn_time", given, repeats=2, records=30, rate=0.5), "anamnesis_index")
    assert found.value == 1.0
    assert found.reference_name == "oracle"


def test_one_record_and_batch_norm_are_not_learned_again():
    normed = cases.noise_world(num_train=200, num_holdout=200, noise_dims=20, batch_norm=True)
    given = cases.evidence(normed, normed.fresh(), cases.first(normed, 1))
    (found,) = run("relearn_time", given)
    assert (found.verdict, found.value) == ("inconclusive", None)
    assert "1 records are too few" in found.reason


def test_nothing_is_concluded_where_nothing_was_learned():
    forget = cases.first(world(), 60)
    found = of(relearned(cases.oracle(world(), forget), forget, most_steps=1), "relearn_ratio")
    assert (found.verdict, found.value) == ("inconclusive", None)
    assert "nothing was learned" in found.reason


def test_giving_up_on_never_seen_records_is_no_sign_of_forgetting():
    forget = cases.first(world(), 60)
    half_way, parent = cases.oracle(world(), forget), trained(world())
    with torch.no_grad():
        for value, remembers in zip(half_way.parameters(), parent.parameters(), strict=True):
            value.lerp_(remembers, 0.8)
    in_full = of(relearned(half_way, forget, rate=0.2), "relearn_ratio")
    assert in_full.value < 0.7
    given_up = of(relearned(half_way, forget, rate=0.2, most_steps=16), "relearn_ratio")
    assert given_up.value > 0.9
    assert given_up.interval[0] == 0.0
    assert given_up.verdict == "inconclusive"
    assert "3 and 0 of 3 reached the goal" in given_up.reason


@pytest.mark.parametrize("name", ["relearn_time", "linear_probe", "zrf", "perturbation"])
def test_a_long_audit_stops_when_its_time_is_spent(name):
    def stop():
        raise OutOfTime("enough")

    given = cases.evidence(world(), world().fresh(), cases.first(world(), 60), check_time=stop)
    with pytest.raises(OutOfTime):
        run(name, given)


def test_a_probe_reads_what_is_there_and_nothing_else():
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(300, 20, generator=draw)
    blind = probe_auc(noise[:150], noise[150:], LinearProbeConfig())
    assert blind.low < 0.5 < blind.high
    shifted = probe_auc(noise[:150] + 2 * torch.eye(20)[0], noise[150:], LinearProbeConfig())
    # the best possible rule for a shift of two standard deviations
    assert shifted.value == pytest.approx(0.921, abs=0.04)


def test_a_probe_sees_through_a_cut_head():
    whole = world()
    label = 1
    ideal = cases.oracle(whole, whole.train.labels == label)
    given = cases.class_evidence(whole, cut(trained(whole), label), label, oracles=(ideal,))
    findings = run("linear_probe", given)
    assert of(findings, "probe_auc").value == of(findings, "probe_auc_before").value
    assert of(findings, "probe_auc").reference_name == "oracle"
    without = dataclasses.replace(given, oracles=())
    assert of(run("linear_probe", without), "probe_auc").reference_name == "fresh network"


def test_prototypes_recover_a_class_whose_head_was_cut_but_not_one_never_seen():
    whole = digits_world("features")
    label = 8
    ideal = cases.oracle(whole, whole.train.labels == label)
    given = cases.class_evidence(whole, cut(trained(whole), label), label, oracles=(ideal,))
    logits = given.scores["after"]["holdout"][given.holdout.labels == label]
    assert not (logits.argmax(dim=1) == label).any()
    found = of(run("prototype", given), "recovered_accuracy")
    assert found.interval[0] > found.reference
    assert found.value > 0.8
    honest = dataclasses.replace(given, after=ideal)
    again = of(run("prototype", honest), "recovered_accuracy")
    assert again.value == pytest.approx(again.reference, abs=0.02)


def test_prototypes_are_of_classes():
    (found,) = run("prototype", cases.evidence(world(), trained(world()), cases.first(world(), 20)))
    assert found.verdict == "inconclusive"
    assert "names records" in found.reason
