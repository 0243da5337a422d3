"""Audits on demand, oracles and reference banks, on files as a runner meets them."""

import copy
import functools
import hashlib
from typing import Literal

import pytest
import torch

from core import networks, weights
from core.audit_job import audit
from core.audits import AuditOptions, audits
from core.bank import load as load_bank
from core.bank_job import BANK_FILE, bank
from core.data import split_holdout
from core.determinism import fresh_seed
from core.errors import Diverged, InvalidInput, OutOfTime
from core.findings import Finding
from core.ingest import ingest
from core.ladder import unlearn
from core.oracle_job import oracle, oracle_seed
from core.registry import Entry
from core.training import fit
from tests.core import cases
from tests.worlds import CPU, accuracy, trained, write_checkpoint, write_dataset

FORGET = list(range(60))
CHEAP = ["accuracy", "membership", "sanity"]


@functools.cache
def world():
    return cases.small_world()


@functools.cache
def without(seed):
    """A model that never saw the first 60 records."""
    return cases.oracle(world(), cases.first(world(), 60), seed)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Weights, oracles and the canonical dataset of the world."""
    folder = tmp_path_factory.mktemp("files")
    ingest(source=write_dataset(world(), folder / "upload"), out=folder, max_records=10_000)
    models = {"parent": trained(world()), "version": without(1)}
    models |= {f"oracle{seed}": without(seed) for seed in (2, 3)}
    paths = {
        name: write_checkpoint(copy.deepcopy(model), folder / f"{name}.safetensors")
        for name, model in models.items()
    }
    return paths | {"records": folder / "records.parquet"}


@pytest.fixture
def basics(files, tmp_path):
    return {
        "out": tmp_path,
        "architecture": world().architecture,
        "preprocessing": {},
        "dataset": files["records"],
        "recipe": world().recipe.model_dump(mode="json"),
        "device": "cpu",
    }


@pytest.fixture
def look(files, basics):
    """Run audits; keyword arguments change the usual ones."""

    def look(*names, **changes):
        usual = {
            **basics,
            "weights": files["version"],
            "parent": files["parent"],
            "oracles": [],
            "holdout": files["records"],
            "excluded": [],
            "split_key": "key",
            "bank": None,
            "forget_rows": FORGET,
            "selector": "records",
            "forget_classes": [],
            "audits": [{"name": name} for name in names or CHEAP],
            "seed": 7,
            "batch_size": 64,
            "time_limit_seconds": 600.0,
        }
        result = audit(**{**usual, **changes})
        assert list(result) == ["findings"]
        return [Finding.model_validate(raw) for raw in result["findings"]]

    return look


@pytest.fixture
def train_oracle(basics):
    def train_oracle(**changes):
        usual = {**basics, "excluded": FORGET, "seed": 7, "time_limit_seconds": 600.0}
        return oracle(**{**usual, **changes})

    return train_oracle


@pytest.fixture
def train_bank(files, basics):
    def train_bank(**changes):
        usual = {
            **basics,
            "recipe": basics["recipe"] | {"epochs": 1},
            "holdout": files["records"],
            "excluded": [],
            "split_key": "key",
            "models": 4,
            "seed": 7,
            "batch_size": 64,
        }
        return bank(**{**usual, **changes})

    return train_bank


@pytest.fixture
def register(monkeypatch):
    """Make a function an audit called ``sabotage`` for one test."""

    def register(run):
        class SabotageConfig(AuditOptions):
            """For a test."""

            name: Literal["sabotage"] = "sabotage"

        monkeypatch.setitem(
            audits._entries, "sabotage", Entry("sabotage", "For a test.", SabotageConfig, run)
        )
        monkeypatch.setattr("core.audit_job._parse", parse)

    def parse(raw):
        return audits[raw["name"]].config.model_validate(raw)

    return register


def value_of(findings, audit, measure, scope="forget"):
    (found,) = [f for f in findings if (f.audit, f.measure, f.scope) == (audit, measure, scope)]
    return found


def test_a_version_is_compared_with_the_one_that_knew_the_records(look):
    findings = look()
    assert {finding.audit for finding in findings} == set(CHEAP)
    forget = world().train.take(FORGET)
    right = value_of(findings, "accuracy", "accuracy")
    assert right.value == pytest.approx(accuracy(without(1), forget))
    assert right.reference == pytest.approx(accuracy(trained(world()), forget))
    assert right.reference > right.value + 0.05, "the parent remembers"
    assert value_of(findings, "membership", "auc_margin").examples == 60
    assert value_of(findings, "sanity", "relative_change", "parameters").value > 0


def test_without_a_parent_the_version_stands_for_it_and_that_is_said(look):
    note, *others = look(parent=None)
    assert (note.audit, note.verdict, note.value) == ("before", "inconclusive", None)
    assert "no weights from before" in note.reason
    auc = value_of(others, "membership", "auc_margin")
    assert auc.value == auc.reference
    assert value_of(others, "sanity", "relative_change", "parameters").value == 0


def test_oracles_and_reference_models_are_compared_with(look, files, train_bank, tmp_path):
    missing = look("oracle_distance", "rmia")
    assert [finding.verdict for finding in missing] == ["inconclusive"] * 2
    assert "no oracle" in missing[0].reason
    assert "no reference models" in missing[1].reason
    train_bank()
    found = look(
        "oracle_distance",
        "rmia",
        oracles=[files["oracle2"], files["oracle3"]],
        bank=tmp_path / BANK_FILE,
    )
    assert {finding.audit for finding in found} == {"oracle_distance", "rmia"}
    assert any(finding.value is not None for finding in found if finding.audit == "rmia")
    assert all(finding.value is not None for finding in found if finding.audit != "rmia")


def test_reference_models_that_do_not_know_the_records_are_left_out(look, train_bank, tmp_path):
    train_bank(excluded=[0])
    (finding,) = look("rmia", bank=tmp_path / BANK_FILE)
    assert (finding.verdict, "no reference models" in finding.reason) == ("inconclusive", True)


def test_findings_depend_on_the_seed_and_on_no_other_audit(look):
    together = look("zrf", "relearn_time", "accuracy")
    assert together == look("zrf", "relearn_time", "accuracy")
    for name in ("relearn_time", "zrf"):
        assert look(name) == [finding for finding in together if finding.audit == name]


def test_what_was_forgotten_beside_takes_no_part(look):
    findings = look("accuracy", excluded=[*range(100, 150)])
    assert value_of(findings, "accuracy", "accuracy", "retain").examples == 240 - 60 - 50
    with pytest.raises(InvalidInput) as caught:
        look(excluded=[0])
    assert caught.value.code == "records_not_found"


def test_a_late_audit_is_inconclusive_and_the_first_ones_are_kept(look, register):
    def slow(evidence, config):
        while True:
            evidence.check_time()

    register(slow)
    findings = look("accuracy", "sabotage", "sanity", time_limit_seconds=3.0)
    assert {f.verdict for f in findings if f.audit == "accuracy"} == {None}
    late = [finding for finding in findings if finding.audit != "accuracy"]
    assert [finding.audit for finding in late] == ["sabotage", "sanity"]
    assert all(finding.reason.startswith("out_of_time") for finding in late)


def test_an_audit_that_fails_does_not_take_the_others_with_it(look, register):
    def fail(evidence, config):
        raise Diverged("the loss is not finite")

    register(fail)
    findings = look("sabotage", "sanity")
    assert findings[0].reason == "diverged: the loss is not finite"
    assert [finding.audit for finding in findings] == ["sabotage", "sanity", "sanity"]


def test_progress_rises_to_the_end(look):
    told = []
    look("accuracy", "membership", report=lambda *event: told.append(event[:2]))
    auditing = [done for phase, done in told if phase == "auditing"]
    assert auditing == sorted(auditing)
    assert auditing[-1] == 1.0
    assert told[0] == ("resolving", 0.0)
    assert told[-1] == ("publishing", 1.0)


def test_an_oracle_is_the_recipe_on_what_is_left(train_oracle, tmp_path):
    result = train_oracle()
    file = tmp_path / "model.safetensors"
    assert result == {
        "weights": file.name,
        "digest": hashlib.sha256(file.read_bytes()).hexdigest(),
        "processes": None,
    }
    made = networks.build(networks.parse(world().architecture), seed=99)
    weights.load(file, made)
    left = world().train.take(~cases.first(world(), 60))
    seed = oracle_seed(7)
    same = fit(world().fresh(seed), left, world().recipe, seed=seed, device=CPU)
    assert weights.equal(made, same)


def test_an_oracle_is_not_what_retraining_with_its_seed_makes(train_oracle):
    assert oracle_seed(7) != fresh_seed(7)
    assert train_oracle()["digest"] != train_oracle(seed=8)["digest"]
    assert train_oracle()["digest"] == train_oracle()["digest"]


def test_an_oracle_ends_in_time_or_not_at_all(train_oracle, tmp_path):
    with pytest.raises(OutOfTime):
        train_oracle(time_limit_seconds=1e-9)
    with pytest.raises(InvalidInput) as caught:
        train_oracle(excluded=[*range(240)])
    assert caught.value.code == "retain_set_too_small"
    assert not (tmp_path / "model.safetensors").exists()


def test_a_bank_knows_what_is_left_and_the_judging_half(train_bank, tmp_path):
    made = train_bank(excluded=FORGET)
    assert made == {"bank": BANK_FILE, "models": 4, "processes": None}
    made = load_bank(tmp_path / BANK_FILE)
    assert made.train_rows.tolist() == [*range(60, 240)]
    ids = [world().ids[row] for row in world().holdout.rows.tolist()]
    judging = world().holdout.take(~split_holdout(ids, "key")).rows
    assert torch.equal(made.judging_rows, judging)
    assert made.trained_on.sum(0).unique().tolist() == [2]


def test_a_bank_that_takes_too_long_ends(train_bank):
    with pytest.raises(OutOfTime):
        train_bank(time_limit_seconds=1e-6)


def test_a_bank_needs_records_on_either_side(train_bank):
    for changes, code in (
        ({"holdout": None}, "holdout_missing"),
        ({"excluded": [*range(240)]}, "retain_set_too_small"),
    ):
        with pytest.raises(InvalidInput) as caught:
            train_bank(**changes)
        assert caught.value.code == code


def test_a_rung_is_attacked_with_the_reference_models(train_bank, files, basics, tmp_path):
    train_bank()
    result = unlearn(
        **basics,
        weights=files["parent"],
        holdout=files["records"],
        excluded=[],
        split_key="key",
        importance=None,
        bank=tmp_path / BANK_FILE,
        requests={"req_a": FORGET},
        selector="records",
        forget_classes=[],
        policy="exact",
        ladder=[{"name": "retrain"}],
        seed=7,
        batch_size=64,
        bn_policy="recalibrate",
        time_limit_seconds=600.0,
    )
    found = {finding["audit"] for finding in result["rungs"][0]["per_request"]["req_a"]["findings"]}
    assert found == {"accuracy", "membership", "rmia", "lira"}
