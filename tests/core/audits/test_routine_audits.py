"""Equivalence, collateral damage, two versions, and randomness: closed forms and ideal values."""

import dataclasses

import pytest
import torch

from core.audits import audits
from core.audits.equivalence import tost_p_value
from core.distances import jensen_shannon
from core.intervals import auc_interval, paired_drop
from core.measures import correct, margin
from core.scores import gather
from tests.core import cases
from tests.worlds import CPU, gaussian_world, trained


def run(name, evidence, **options):
    return audits[name].run(evidence, audits[name].config(**options))


def of(findings, measure, scope="forget"):
    (finding,) = [f for f in findings if (f.measure, f.scope) == (measure, scope)]
    return finding


def normal(count, seed, shift=0.0):
    return shift + torch.randn(count, generator=torch.Generator().manual_seed(seed))


def test_the_p_value_turns_where_the_interval_touches_the_band():
    members, others, weights = normal(400, 0), normal(400, 1), torch.ones(400)
    for kappa in (0.05, 0.08, 0.2):
        p = tost_p_value(members, others, weights, kappa)
        for factor, inside in ((1.01, True), (0.99, False)):
            if not 1e-6 < p * factor < 0.5:
                continue
            found = auc_interval(members, others, weights, level=1 - 2 * p * factor)
            assert (0.5 - kappa <= found.low and found.high <= 0.5 + kappa) is inside


def test_a_shifted_side_is_called_alike_no_more_often_than_the_level():
    shift, alike = 0.1795, 0  # an AUC of 0.55: the edge of the band
    for seed in range(100):
        others = normal(400, 2 * seed + 1)
        alike += tost_p_value(normal(400, 2 * seed, shift), others, torch.ones(400), 0.05) <= 0.05
    assert alike / 100 < 0.12


def large(seed, shift=0.0, parent=1.0):
    """Evidence with many records, whose margins are drawn."""
    world = gaussian_world(num_train=3000, num_holdout=6000, hidden=2, epochs=1, label_noise=0.0)
    evidence = cases.evidence(world, world.fresh(), cases.first(world, 2000))

    def logits(records, values):
        return torch.zeros(len(records), 4).scatter(1, records.labels[:, None], values[:, None])

    unseen = logits(evidence.holdout, normal(len(evidence.holdout), seed))
    scores = {
        "before": {"forget": logits(evidence.forget, normal(2000, seed + 1, parent))},
        "after": {"forget": logits(evidence.forget, normal(2000, seed + 2, shift))},
    }
    return dataclasses.replace(
        evidence, scores={name: {**of, "holdout": unseen} for name, of in scores.items()}
    )


@pytest.mark.parametrize("score", ["margin", "modified_entropy"])
@pytest.mark.parametrize(("shift", "verdict"), [(0.0, "passed"), (1.0, "failed"), (-1.0, "failed")])
def test_alike_passes_and_unlike_fails_on_either_side(score, shift, verdict):
    findings = run("equivalence", large(0, shift))
    found = of(findings, f"tost_p_{score}")
    assert found.verdict == verdict
    assert (found.value <= 0.05) is (verdict == "passed")
    assert of(findings, f"power_{score}").value > 0.9


def test_a_few_records_or_a_parent_that_remembers_nothing_give_no_verdict():
    faint = run("equivalence", large(0, parent=0.02))
    assert of(faint, "tost_p_margin").verdict == "inconclusive"
    few = large(0).of_forget(torch.arange(20))
    found = of(run("equivalence", few), "tost_p_margin")
    assert found.verdict == "inconclusive"
    assert of(run("equivalence", few), "power_margin").value == 0.0


def test_records_that_nothing_compares_with_are_not_called_alike():
    given = large(0)
    seen = given.holdout.labels != 1
    scores = {model: {**of, "holdout": of["holdout"][seen]} for model, of in given.scores.items()}
    part = dataclasses.replace(given, holdout=given.holdout.take(seen), scores=scores)
    assert of(run("equivalence", part), "tost_p_margin").verdict == "inconclusive"


def test_collateral_covers_every_class_that_stays_at_once():
    world = cases.small_world()
    given = cases.class_evidence(world, cases.oracle(world, world.train.labels == 2), 2)
    findings = run("collateral", given)
    assert [f.scope for f in findings] == [f"holdout/class={c}" for c in (0, 1, 3)]
    labels = given.holdout.labels
    mask = labels == 3
    before, after = (correct(given.scores[m]["holdout"], labels)[mask] for m in ("before", "after"))
    drop = paired_drop(before, after, level=1 - 0.1 / 3)
    found = of(findings, "accuracy_drop", "holdout/class=3")
    assert (found.value, *found.interval) == tuple(drop)
    assert found.interval_level == pytest.approx(1 - 0.1 / 3)


def test_a_class_that_was_hurt_is_found():
    world = gaussian_world()
    given = cases.evidence(world, trained(world), cases.first(world, 20))
    hurt = given.scores["before"]["holdout"].clone()
    hurt[:, 2] -= 100
    scores = {**given.scores, "after": {**given.scores["after"], "holdout": hurt}}
    findings = run("collateral", dataclasses.replace(given, scores=scores))
    drops = {f.scope: f for f in findings}
    assert drops["holdout/class=2"].interval[0] > 0.3
    assert all(f.value <= 0 for scope, f in drops.items() if scope != "holdout/class=2")


def test_two_versions_show_whom_a_good_unlearner_forgot():
    world = gaussian_world()
    forget = cases.first(world, 60)
    ideal = cases.oracle(world, forget)
    (good,) = run("two_version", cases.evidence(world, ideal, forget, oracles=(ideal,)))
    assert good.interval[0] > 0.5
    assert good.value == good.reference
    (idle,) = run("two_version", cases.evidence(world, trained(world), forget))
    assert (idle.value, idle.reference) == (pytest.approx(0.5), 0.5)


def test_two_versions_compare_the_size_of_the_change_not_its_sign():
    world = cases.small_world()
    given = cases.evidence(world, trained(world), cases.first(world, 60))
    moved = {role: logits.clone() for role, logits in given.scores["before"].items()}
    sign = torch.where(torch.arange(60) % 2 == 0, 9.0, -9.0)[:, None]
    moved["forget"].scatter_add_(1, given.forget.labels[:, None], sign)
    (found,) = run(
        "two_version", dataclasses.replace(given, scores={**given.scores, "after": moved})
    )
    assert found.value == 1.0


def test_zrf_is_one_minus_the_mean_divergence_from_fresh_networks():
    world = cases.small_world()
    built = []

    def fresh(seed):
        built.append(world.fresh(seed))
        return built[-1]

    ideal = cases.oracle(world, cases.first(world, 60))
    given = cases.evidence(world, ideal, cases.first(world, 60), fresh=fresh)
    found = of(run("zrf", given), "zrf")
    assert len(built) == 5
    divergences = [
        jensen_shannon(
            given.scores["after"]["forget"], gather(m, given.forget, batch_size=64, device=CPU)
        ).mean()
        for m in built
    ]
    assert found.value == pytest.approx(1 - float(torch.stack(divergences).mean()))
    assert found.reference_name == "never-seen"


def test_zrf_of_one_record_has_no_interval():
    world = cases.small_world()
    alone = cases.evidence(world, world.fresh(), cases.first(world, 1))
    findings = run("zrf", alone)
    assert [f.interval for f in findings] == [None, None]
    assert all(f.value is not None for f in findings)


def test_zrf_of_an_oracle_is_that_of_never_seen_records():
    world = gaussian_world()
    forget = cases.first(world, 120)
    oracle = of(
        run("zrf", cases.evidence(world, cases.oracle(world, forget), forget)), "zrf_difference"
    )
    assert oracle.interval[0] < 0 < oracle.interval[1]
    parent = of(run("zrf", cases.evidence(world, trained(world), forget)), "zrf_difference")
    assert parent.interval[1] < 0
    assert parent.value == parent.reference


def test_margins_of_the_large_world_are_as_drawn():
    given = large(0)
    found = margin(given.scores["after"]["forget"], given.forget.labels)
    assert found.std().item() == pytest.approx(1, abs=0.05)
