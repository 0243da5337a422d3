"""What every registered audit keeps, and that its numbers are right."""

import copy
import dataclasses
import json
from functools import lru_cache

import pytest
import torch
from sklearn.metrics import roc_curve

from core import weights
from core.attack import population
from core.audits import AuditOptions, audits, run_all, run_chosen
from core.measures import accuracy, balanced_accuracy
from tests.core import cases
from tests.worlds import digits_world, gaussian_world, trained

NAMES = audits.names()

OPTIONS = {
    "backdoor": {"trigger": {"target": 3, "size": 2, "offset": 0}},
    "relearn_time": {"records": 20, "repeats": 2, "most_steps": 40},
}
"""What has no default, and what is cheaper than defaults for real models."""


def given(name="", **changes):
    images = name in audits and "images" in audits[name].config.needs
    world = digits_world(num_records=400, epochs=5) if images else cases.small_world()
    forget = cases.first(world, 80)
    return cases.evidence(world, cases.oracle(world, forget), forget, **changes)


@lru_cache(maxsize=1)
def _complete():
    world = cases.small_world()
    forget = cases.first(world, 80)
    second = cases.oracle(world, forget, seed=6)
    return cases.evidence(
        world, cases.oracle(world, forget), forget, oracles=(second,), bank=cases.bank(world)
    )


@lru_cache(maxsize=1)
def _of_class():
    world = cases.small_world()
    after = cases.oracle(world, world.train.labels == 1)
    return cases.class_evidence(world, after, 1)


def complete(name):
    """Evidence with everything that an audit may need."""
    if "images" in audits[name].config.needs:
        return given(name)
    return _of_class() if name == "prototype" else _complete()


def found(evidence, name):
    entry = audits[name]
    return entry.run(evidence, entry.config(**OPTIONS.get(name, {})))


@pytest.mark.parametrize("name", NAMES)
def test_findings_are_json_without_gaps(name):
    findings = found(complete(name), name)
    assert findings
    json.dumps([finding.model_dump(mode="json") for finding in findings], allow_nan=False)
    for finding in findings:
        assert finding.audit == name
        assert finding.examples > 0
        assert finding.value is not None or finding.verdict == "inconclusive"
        assert finding.verdict != "inconclusive" or finding.reason
        if finding.interval is not None:
            assert finding.interval[0] <= finding.value <= finding.interval[1]


@pytest.mark.parametrize("name", NAMES)
def test_the_same_evidence_gives_the_same_findings(name):
    assert found(complete(name), name) == found(complete(name), name)


@pytest.mark.parametrize("name", NAMES)
def test_what_an_audit_needs_is_said_when_it_is_missing(name):
    config = audits[name].config(**OPTIONS.get(name, {}))
    assert isinstance(config, AuditOptions)
    bare = dataclasses.replace(
        complete(name), holdout=None, retain=None, oracles=(), references=None, recipe=None
    )
    if {"holdout", "retain", "oracle", "references", "recipe"} & set(config.needs):
        (finding,) = run_chosen(bare, [config])
        assert (finding.audit, finding.verdict, finding.value) == (name, "inconclusive", None)
        assert finding.reason
    else:
        assert run_chosen(bare, [config])


@pytest.mark.parametrize("name", NAMES)
def test_a_model_that_says_nothing_is_not_praised(name):
    evidence = complete(name)
    broken = copy.deepcopy(evidence.after)
    with torch.no_grad():
        for parameter in broken.parameters():
            parameter.fill_(float("nan"))
    nothing = {role: torch.full_like(x, torch.nan) for role, x in evidence.scores["after"].items()}
    judged = dataclasses.replace(
        evidence, after=broken, scores={**evidence.scores, "after": nothing}
    )
    for finding in run_chosen(judged, [audits[name].config(**OPTIONS.get(name, {}))]):
        json.dumps(finding.model_dump(mode="json"), allow_nan=False)
        assert finding.verdict != "passed"


def test_routine_audits_run_on_every_rung_and_the_others_when_chosen():
    evidence = _complete()
    routine = {entry.name for entry in audits if entry.config.routine}
    assert {finding.audit for finding in run_all(evidence)} == routine
    chosen = [audits["zrf"].config(), audits["avg_gap"].config()]
    assert [f.audit for f in run_chosen(evidence, chosen)][::8] == ["zrf", "avg_gap"]


@pytest.mark.parametrize("name", NAMES)
def test_evidence_is_not_changed(name):
    evidence = complete(name)
    models = (evidence.before, evidence.after, *evidence.oracles)
    before = [weights.digest(m) for m in models]
    hooks = [len(m._forward_pre_hooks) for model in models for m in model.modules()]
    data = [r.digest() for r in (evidence.forget, evidence.retain, evidence.holdout)]
    found(evidence, name)
    assert [weights.digest(m) for m in models] == before
    assert [len(m._forward_pre_hooks) for model in models for m in model.modules()] == hooks
    assert [r.digest() for r in (evidence.forget, evidence.retain, evidence.holdout)] == data
    assert not any(model.training for model in models)


@pytest.mark.parametrize("name", NAMES)
def test_the_config_says_everything(name):
    entry = audits[name]
    schema = entry.config.model_json_schema()["properties"]
    assert all(info.get("description") for field, info in schema.items() if field != "name")
    assert entry.summary
    assert entry.config.source


def one(findings, measure, scope="forget"):
    (finding,) = [f for f in findings if (f.measure, f.scope) == (measure, scope)]
    return finding


def test_accuracy_before_and_after_whole_and_per_class():
    evidence = given()
    findings = found(evidence, "accuracy")
    whole = one(findings, "accuracy", "holdout")
    labels = evidence.holdout.labels
    assert whole.value == accuracy(evidence.scores["after"]["holdout"], labels)
    assert whole.reference == accuracy(evidence.scores["before"]["holdout"], labels)
    assert whole.interval[0] < whole.value < whole.interval[1]
    of_class = one(findings, "accuracy", "forget/class=2")
    mask = evidence.forget.labels == 2
    assert of_class.examples == int(mask.sum())
    assert of_class.value == accuracy(
        evidence.scores["after"]["forget"][mask], evidence.forget.labels[mask]
    )
    assert one(findings, "loss", "retain").unit == "nats"


def test_membership_sees_the_parent_remember_and_the_oracle_forget():
    world = gaussian_world()
    forget = cases.first(world, 120)
    evidence = cases.evidence(world, cases.oracle(world, forget), forget)
    auc = one(found(evidence, "membership"), "auc_margin")
    assert auc.reference > 0.6
    assert auc.interval[0] < 0.5 < auc.interval[1]


def test_membership_states_its_power():
    power = one(found(given(), "membership"), "power")
    assert power.value == 0.0
    assert "80 forget" in power.reason


def test_a_low_false_positive_rate_needs_never_seen_records():
    world = cases.small_world()
    few = cases.halves(world)[1].take(range(50))
    evidence = given()
    scores = {m: {**s, "holdout": s["holdout"][:50]} for m, s in evidence.scores.items()}
    findings = found(dataclasses.replace(evidence, holdout=few, scores=scores), "membership")
    for measure in ("tpr_at_0.01_fpr", "tpr_at_0.001_fpr"):
        finding = one(findings, measure)
        assert (finding.value, finding.verdict) == (None, "inconclusive")
        assert "false positive" in finding.reason


def test_hits_are_counted_at_both_rates_that_are_usual():
    world = cases.noise_world(num_train=200, num_holdout=4000, noise_dims=100)
    evidence = cases.evidence(world, trained(world), cases.first(world, 100))
    findings = found(evidence, "membership")
    attack = population(evidence)
    shares = attack.match.weights
    for measure, fpr in (("tpr_at_0.01_fpr", 0.01), ("tpr_at_0.001_fpr", 0.001)):
        members, others = attack.scores("after")
        scores = torch.cat([members, others])
        mass = torch.cat([torch.ones(len(members)), shares])
        rates = roc_curve(torch.arange(len(scores)) < len(members), scores, sample_weight=mass)
        assert one(findings, measure).value == rates[1][rates[0] <= fpr + 1e-9].max()
    chosen = one(findings, "balanced_accuracy")
    assert chosen.value == balanced_accuracy(*attack.scores("after"), shares).value
    assert 0.5 < chosen.interval[0] < chosen.value


def test_missing_evidence_becomes_an_inconclusive_finding_with_a_reason():
    findings = run_all(given(holdout=None))
    (finding,) = [f for f in findings if f.audit == "membership"]
    assert (finding.verdict, finding.value) == ("inconclusive", None)
    assert "no holdout" in finding.reason
    (finding,) = [f for f in findings if f.audit == "accuracy" and f.verdict == "inconclusive"]
    assert "holdout" in finding.reason


def test_sanity_counts_parameters_and_broken_values():
    world = cases.small_world()
    broken = trained(world)
    with torch.no_grad():
        next(broken.parameters())[0, :2] = float("nan")
    evidence = given()
    findings = found(dataclasses.replace(evidence, after=broken), "sanity")
    assert one(findings, "non_finite", "parameters and buffers").value == 2
    assert one(findings, "relative_change", "parameters").value is None
    same = dataclasses.replace(evidence, after=trained(world))
    assert one(found(same, "sanity"), "relative_change", "parameters").value == 0
