"""What a rung hands to its audits: oracles and references, computed once, kept per request."""

import math
from dataclasses import replace

import pytest
import torch

from core import bank as banks
from core.audits import audits
from core.report import no_report
from core.rungs import Case, attempt, gather_evidence
from core.unlearners import unlearners
from tests.core import cases
from tests.worlds import CPU, gaussian_world, trained


def world():
    return gaussian_world(num_train=240, num_holdout=240, hidden=32, epochs=30)


def case(**changes):
    forget = cases.first(world(), 40)
    tuning, judging = cases.halves(world())
    rows = world().train.rows[forget].tolist()
    base = Case(
        parent=trained(world()),
        fresh=world().fresh,
        forget=world().train.take(forget),
        retain=world().train.take(~forget),
        tuning=tuning,
        judging=judging,
        recipe=world().recipe,
        importance=None,
        requests={"first": rows[:15], "second": rows[15:]},
        selector="records",
        forget_classes=frozenset(),
        num_classes=4,
        policy="standard",
        seed=7,
        batch_size=100,
        bn_policy="recalibrate",
        device=CPU,
        deadline=math.inf,
        report=no_report,
    )
    return replace(base, **changes)


def counted(model, seen, name):
    model.register_forward_pre_hook(lambda *_: seen.append(name))
    return model


def test_parent_and_oracles_are_run_once_for_all_rungs():
    seen = []
    oracles = tuple(
        counted(cases.oracle(world(), cases.first(world(), 40), seed=n), seen, n) for n in (5, 6)
    )
    shared = case(parent=counted(trained(world()), seen, "parent"), oracles=oracles)
    first = gather_evidence(shared, trained(world()), None)
    count = len(seen)
    second = gather_evidence(shared, world().fresh(), None)
    assert len(seen) == count
    assert set(first.scores) == {"before", "after", "oracle", "oracle_2"}
    assert first.scores["oracle"]["forget"] is second.scores["oracle"]["forget"]
    assert not torch.equal(first.scores["after"]["forget"], second.scores["after"]["forget"])


def test_a_per_record_audit_runs_no_model_beyond_the_shared_scores():
    shared = case(bank=cases.bank(world()))
    evidence = gather_evidence(shared, trained(world()), None)
    seen = []
    counted(evidence.before, seen, "before")
    counted(evidence.after, seen, "after")
    for name in ("rmia", "lira"):
        audits[name].run(evidence, audits[name].config())
    assert seen == []


def test_every_request_has_per_record_findings_of_its_own():
    rung, _ = attempt(case(bank=cases.bank(world())), unlearners["retrain"].config(), 0, 1)
    for request, count in (("first", 15), ("second", 25)):
        found = [f for f in rung.per_request[request].findings if f.audit == "rmia"]
        assert {f.examples for f in found} == {count}
    assert {f.examples for f in rung.findings if f.audit == "rmia"} == {40}


@pytest.mark.parametrize("bank", [None, "incomplete"])
def test_without_a_bank_per_record_audits_say_so(bank):
    if bank is not None:
        whole = cases.bank(world())
        none = slice(0, 0)
        bank = replace(
            whole,
            trained_on=whole.trained_on[none],
            train_margins=whole.train_margins[none],
            judging_margins=whole.judging_margins[none],
        )
        assert isinstance(bank, banks.Bank)
    rung, _ = attempt(case(bank=bank), unlearners["retrain"].config(), 0, 1)
    (found,) = [f for f in rung.findings if f.audit == "rmia"]
    assert (found.verdict, found.value) == ("inconclusive", None)
    assert "reference models" in found.reason
    assert not [f for f in rung.per_request["first"].findings if f.audit == "rmia"]


def test_oracles_reach_the_audits_of_a_rung():
    oracle = cases.oracle(world(), cases.first(world(), 40))
    rung, _ = attempt(case(oracles=(oracle,)), unlearners["retrain"].config(), 0, 1)
    (found,) = [f for f in rung.findings if f.audit == "two_version"]
    assert found.reference_name == "oracle"


def test_progress_of_gathering_rises():
    said = []
    report = lambda phase, fraction, *_: said.append((phase, fraction))  # noqa: E731
    gather_evidence(case(report=report), world().fresh(), None)
    fractions = [fraction for _, fraction in said]
    assert fractions == sorted(fractions)
    assert 0 <= fractions[0] <= fractions[-1] < 1


@pytest.mark.parametrize("with_bank", [True, False])
def test_a_rung_that_is_given_up_says_that_a_bank_is_no_help(with_bank):
    bank = cases.bank(world()) if with_bank else None
    config = unlearners["fine_tune"].config()
    rung, _ = attempt(case(bank=bank), config, 0, 2, exact_follows=True)
    assert rung.status == "skipped"
    assert rung.reason.endswith("; reference models do not stand in") is with_bank
