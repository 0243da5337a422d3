"""Gates that rest on findings of audits: what passes, what fails, and what stays open and why."""

import pytest

from core import audit_gates
from core.findings import Finding
from core.perrecord import allowed_share


def finding(audit, measure, value, **changes):
    usual = {
        "audit": audit,
        "measure": measure,
        "scope": "forget",
        "value": value,
        "unit": "1",
        "examples": 1000,
    }
    return Finding(**(usual | changes))


def untold(audit, reason):
    return finding(audit, audit, None, examples=0, verdict="inconclusive", reason=reason)


def attacked(audit="rmia", above="passed", below="passed"):
    def one_tail(measure, verdict):
        value = {"passed": 0.05, "inconclusive": 0.2, "failed": 0.4}[verdict]
        interval = (value - 0.02, value + 0.02)
        return finding(
            audit, measure, value, reference=0.05, interval=interval, verdict=verdict, reason="so"
        )

    return [
        one_tail("exceeding_share", above),
        one_tail("below_share", below),
        finding(audit, "exceeding_share_before", 0.45),
        finding(audit, "power", 0.9),
    ]


def probed(
    after, before, half=0.02, examples=1000, measure="probe_auc", audit="linear_probe", **of
):
    return [
        finding(audit, name, value, interval=(value - half, value + half), examples=examples, **of)
        for name, value in ((measure, after), (f"{measure}_before", before))
    ]


def relearned(value, low, high):
    return [finding("relearn_time", "relearn_ratio", value, interval=(low, high), reason="steps")]


def assert_open(gate, reason):
    assert gate.verdict == "inconclusive"
    assert (gate.value, gate.interval, gate.power, gate.examples) == (None, None, 0.0, 0)
    assert reason in gate.reason


@pytest.mark.parametrize(
    ("policy", "selector", "exact", "names"),
    [
        ("standard", "records", False, []),
        ("fast", "records", False, []),
        ("strict", "records", True, []),
        ("strict", "records", False, ["relearn_time", "linear_probe"]),
        ("fast", "class", False, ["prototype"]),
        ("exact", "class", True, ["prototype"]),
        ("strict", "class", True, ["prototype"]),
        ("strict", "class", False, ["prototype", "relearn_time", "linear_probe"]),
    ],
)
def test_only_strict_pays_for_its_audits(policy, selector, exact, names):
    chosen = audit_gates.audits_for(policy, selector, exact=exact, num_classes=10)
    assert [config.name for config in chosen] == names
    gates = audit_gates.audit_gates([], policy, selector, exact=exact)
    expected = ["prototype_recovery"] if selector == "class" else []
    if policy == "strict" and not exact:
        expected += ["per_record_attack", "relearn_time", "linear_probe"]
    assert [gate.name for gate in gates] == expected
    assert {gate.verdict for gate in gates} <= {"inconclusive"}
    assert all((gate.role == "reported") == exact for gate in gates)


@pytest.mark.parametrize(("num_classes", "repeats"), [(10, 5), (100, 5), (200, 2), (1000, 1)])
def test_prototypes_of_many_classes_are_drawn_less_often(num_classes, repeats):
    (chosen,) = audit_gates.audits_for("fast", "class", exact=False, num_classes=num_classes)
    assert chosen.repeats == repeats


def test_the_band_of_the_attack_ends_half_way_to_the_parent():
    gate = audit_gates.per_record_attack(attacked())
    assert (gate.verdict, gate.role, gate.power) == ("passed", "must_pass", 0.9)
    assert gate.band == (0.0, allowed_share(0.05, 0.45)) == (0.0, 0.25)


@pytest.mark.parametrize(
    ("above", "below", "verdict"),
    [
        ("failed", "passed", "failed"),
        ("passed", "failed", "failed"),
        ("inconclusive", "failed", "failed"),
        ("passed", "inconclusive", "inconclusive"),
    ],
)
def test_records_that_stand_out_on_either_side_are_found(above, below, verdict):
    gate = audit_gates.per_record_attack(attacked(above=above, below=below))
    assert gate.verdict == verdict
    assert gate.measure == ("exceeding_share" if above == verdict else "below_share")


def test_lira_stands_in_where_rmia_could_not_be_run():
    findings = [untold("rmia", "some margins are not a number"), *attacked("lira", above="failed")]
    gate = audit_gates.per_record_attack(findings)
    assert gate.verdict == "failed"
    assert gate.reason.startswith("lira")
    both = [*attacked("lira", above="failed"), *attacked("rmia")]
    assert audit_gates.per_record_attack(both).verdict == "passed"


def test_without_reference_models_the_attack_is_open():
    findings = [untold(audit, "no reference models were trained") for audit in ("rmia", "lira")]
    gate = audit_gates.per_record_attack(findings)
    assert_open(gate, "needs the reference models of this model: no reference models were trained")
    assert_open(audit_gates.per_record_attack([]), "no per-record attack was run")


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [
        ((1.0, 0.9, 1.1), "passed"),
        ((3.0, 2.7, 3.3), "passed"),
        ((0.85, 0.75, 0.96), "inconclusive"),
        ((0.04, 0.035, 0.045), "failed"),
        ((1.9, 0.9, 4.0), "inconclusive"),
        ((0.97, 0.0, 0.97), "inconclusive"),
    ],
)
def test_relearning_may_not_be_quick(ratio, verdict):
    gate = audit_gates.relearn_time(relearned(*ratio))
    assert (gate.verdict, gate.role) == (verdict, "must_pass")
    assert gate.band == (0.8, 1e9)


def test_the_power_of_relearning_falls_with_the_width_of_its_interval():
    narrow = audit_gates.relearn_time(relearned(1.0, 0.95, 1.05)).power
    wide = audit_gates.relearn_time(relearned(1.0, 0.5, 2.0)).power
    assert narrow > 0.99
    assert wide < 0.2


def test_relearning_that_told_nothing_is_open():
    said = finding("relearn_time", "relearn_ratio", None, verdict="inconclusive", reason="no steps")
    assert_open(audit_gates.relearn_time([said]), "no steps")
    missing = untold("relearn_time", "no recipe was registered with the model")
    assert_open(audit_gates.relearn_time([missing]), "no recipe was registered")


@pytest.mark.parametrize(
    ("after", "before", "kappa", "verdict"),
    [
        (0.50, 0.80, 0.05, "passed"),
        (0.80, 0.80, 0.05, "failed"),
        (0.54, 0.80, 0.05, "inconclusive"),
        (0.50, 0.51, 0.05, "passed"),
        (0.60, 0.51, 0.05, "failed"),
        (0.50, 0.53, 0.015, "inconclusive"),
        (0.53, 0.53, 0.015, "inconclusive"),
    ],
)
def test_the_probe_of_records_is_held_against_one_half(after, before, kappa, verdict):
    gate = audit_gates.linear_probe(probed(after, before), "records")
    assert gate.band == pytest.approx((0.5 - kappa, 0.5 + kappa))
    assert (gate.verdict, gate.role) == (verdict, "must_pass")


@pytest.mark.parametrize("selector", ["records", "class"])
def test_a_probe_that_could_not_be_run_is_open(selector):
    findings = [untold("linear_probe", "a probe needs at least 5 records on either side")]
    assert_open(audit_gates.linear_probe(findings, selector), "at least 5 records")


@pytest.mark.parametrize(
    ("after", "before", "reference", "verdict"),
    [
        (0.30, 0.90, ("oracle", 0.30), "passed"),
        (0.10, 0.90, ("oracle", 0.30), "passed"),
        (0.90, 0.90, ("oracle", 0.30), "failed"),
        (0.34, 0.90, ("oracle", 0.30), "inconclusive"),
        (0.30, 0.90, ("fresh network", 0.30), "passed"),
        (0.90, 0.90, ("fresh network", 0.30), "inconclusive"),
        (0.90, 0.30, ("oracle", 0.30), "inconclusive"),
    ],
)
def test_a_class_is_held_against_one_never_seen(after, before, reference, verdict):
    of = {"reference_name": reference[0], "reference": reference[1], "examples": 4000}
    prototypes = probed(after, before, measure="recovered_accuracy", audit="prototype", **of)
    gates = [
        (audit_gates.prototype_recovery(prototypes), "must_not_fail"),
        (audit_gates.linear_probe(probed(after, before, half=0.01, **of), "class"), "must_pass"),
    ]
    for gate, role in gates:
        assert (gate.verdict, gate.role) == (verdict, role), gate.reason
        assert gate.band == (-1.0, pytest.approx(min(0.05, max(before - reference[1], 0) / 2)))
        assert ("without an oracle" in gate.reason) == (
            reference[0] != "oracle" and verdict == "inconclusive"
        )


def test_prototypes_that_could_not_be_drawn_are_open():
    findings = [untold("prototype", "no training record stays")]
    assert_open(audit_gates.prototype_recovery(findings), "no training record stays")
    assert_open(audit_gates.prototype_recovery([]), "its audit was not run")
