"""Policies: which rungs in which order, and what a publication needs."""

import pytest

from core.findings import Gate
from core.policies import Situation, ladder, may_publish, missing_audits


def situation(**changes):
    base = {
        "policy": "standard",
        "selector": "records",
        "num_forget": 500,
        "has_recipe": True,
        "has_holdout": True,
    }
    return Situation(**(base | changes))


FEW = {"fine_tune", "random_label", "retrain", "ssd"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ["fine_tune", "random_label", "retrain"]),
        ({"selector": "class"}, ["fine_tune", "ssd", "random_label", "retrain"]),
        ({"num_forget": 199}, ["retrain", "fine_tune", "random_label"]),
        ({"num_forget": 199, "has_recipe": False}, ["fine_tune", "random_label"]),
        ({"has_holdout": False}, ["retrain"]),
        ({"has_holdout": False, "has_recipe": False}, []),
        ({"policy": "fast"}, ["fine_tune"]),
        ({"policy": "exact"}, ["retrain"]),
        ({"policy": "exact", "has_recipe": False}, []),
        ({"policy": "strict"}, ["fine_tune", "random_label", "retrain"]),
        ({"unlearner": {"name": "ssd"}}, ["ssd"]),
    ],
)
def test_ladders(changes, expected):
    assert [rung["name"] for rung in ladder(situation(**changes), FEW)] == expected


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        ((), ["rmia or lira", "relearn_time", "linear_probe"]),
        (("rmia", "linear_probe"), ["relearn_time"]),
        (("lira", "relearn_time", "linear_probe", "accuracy"), []),
    ],
)
def test_strict_needs_its_audits(names, missing):
    assert missing_audits("strict", names) == missing
    assert missing_audits("standard", names) == []


KINDS = {
    "utility": ("utility", "must_pass"),
    "worst_class": ("utility", "must_not_fail"),
    "membership_auc": ("forgetting", "must_pass"),
    "forget_accuracy": ("forgetting", "must_not_fail"),
    "changed": ("sanity", "must_not_fail"),
    "per_record_attack": ("forgetting", "must_not_fail"),
    "relearn_time": ("forgetting", "must_not_fail"),
    "linear_probe": ("forgetting", "must_not_fail"),
}


def judged(exact=False, **verdicts):
    return [
        Gate(
            name=name,
            kind=kind,
            role="reported" if exact and name in ("worst_class", *FORGETTING) else role,
            measure="m",
            value=0.0,
            interval=None,
            band=(0.0, 1.0),
            verdict=verdicts.get(name, "passed"),
            power=1.0,
            examples=1,
            reason="",
        )
        for name, (kind, role) in KINDS.items()
    ]


FORGETTING = (
    "membership_auc",
    "forget_accuracy",
    "per_record_attack",
    "relearn_time",
    "linear_probe",
)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("policy", ["fast", "standard", "strict"])
def test_one_failed_gate_refuses_an_approximate_rung(policy, name):
    publish, reason = may_publish(policy, False, judged(**{name: "failed"}))
    assert not publish
    assert name in reason


@pytest.mark.parametrize(
    ("policy", "open_gate", "expected"),
    [
        ("fast", "utility", False),
        ("fast", "membership_auc", True),
        ("fast", "worst_class", True),
        ("standard", "utility", False),
        ("standard", "membership_auc", False),
        ("standard", "forget_accuracy", True),
        ("standard", "worst_class", True),
        ("strict", "forget_accuracy", False),
        ("strict", "worst_class", False),
    ],
)
def test_inconclusive_gates(policy, open_gate, expected):
    assert may_publish(policy, False, judged(**{open_gate: "inconclusive"}))[0] is expected


@pytest.mark.parametrize("policy", ["fast", "standard", "strict"])
def test_all_passed_is_published(policy):
    assert may_publish(policy, False, judged())[0]


@pytest.mark.parametrize("name", ["per_record_attack", "relearn_time", "linear_probe"])
def test_strict_wants_every_one_of_its_own_gates(name):
    gates = [gate for gate in judged() if gate.name != name]
    publish, reason = may_publish("strict", False, gates)
    assert not publish
    assert reason.startswith("inconclusive")
    assert name in reason
    assert may_publish("standard", False, gates)[0]
    assert may_publish("strict", True, judged(exact=True))[0]


def test_the_exact_policy_publishes_no_approximate_rung():
    assert not may_publish("exact", False, judged())[0]
    assert may_publish("exact", True, judged(exact=True))[0]


def test_an_exact_rung_says_no_more_than_was_measured():
    publish, reason = may_publish("standard", True, judged(exact=True, utility="inconclusive"))
    assert publish
    assert reason == "exact by construction; sanity and utility did not fail"


def test_without_a_forgetting_gate_nothing_approximate_is_published():
    gates = [gate for gate in judged() if gate.kind != "forgetting"]
    assert not may_publish("fast", False, gates)[0]


@pytest.mark.parametrize("name", ["membership_auc", "forget_accuracy", "worst_class"])
def test_an_exact_rung_is_not_blocked_by_what_is_only_reported(name):
    assert may_publish("standard", True, judged(exact=True, **{name: "failed"}))[0]


@pytest.mark.parametrize("verdict", ["failed", "inconclusive"])
@pytest.mark.parametrize("policy", ["fast", "standard", "strict"])
def test_what_is_only_reported_blocks_no_rung(policy, verdict):
    gates = [
        gate.model_copy(update={"role": "reported"}) if gate.name == "membership_auc" else gate
        for gate in judged(membership_auc=verdict)
    ]
    assert may_publish(policy, False, gates)[0]


@pytest.mark.parametrize("name", ["utility", "changed"])
def test_an_exact_rung_is_blocked_by_utility_and_sanity(name):
    assert not may_publish("standard", True, judged(exact=True, **{name: "failed"}))[0]
