"""A whole job on files: what is tried, what is published, and what is written down."""

import dataclasses
import functools
import hashlib
import itertools
import time
from typing import ClassVar, Literal

import pyarrow.parquet as pq
import pytest
import torch

from core import importance, networks, weights
from core.checkpoints import Keeper
from core.errors import (
    Diverged,
    Infeasible,
    Interrupted,
    InvalidInput,
    MissingEvidence,
    NothingChanged,
)
from core.findings import Rung
from core.ingest import ingest
from core.ladder import _refusal, unlearn
from core.prepare import prepare
from core.registry import Entry
from core.training import fit
from core.unlearners import UnlearnerOptions, unlearners
from core.verdicts import unmeasured
from tests.core import cases
from tests.worlds import CPU, trained, write_checkpoint, write_dataset

FORGET = list(range(60))
RETRAIN = {"name": "retrain"}


@functools.cache
def world():
    return cases.small_world()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Weights and canonical dataset of the world."""
    folder = tmp_path_factory.mktemp("files")
    ingest(source=write_dataset(world(), folder / "upload"), out=folder, max_records=10_000)
    return {
        "weights": write_checkpoint(trained(world()), folder / "parent.safetensors"),
        "dataset": folder / "records.parquet",
        "holdout": folder / "records.parquet",
    }


@pytest.fixture
def run(files, tmp_path):
    """Run a job; keyword arguments change the usual one."""

    def run(**changes):
        usual = {
            "out": tmp_path,
            **files,
            "architecture": world().architecture,
            "preprocessing": {},
            "recipe": world().recipe.model_dump(mode="json"),
            "excluded": [],
            "split_key": "key",
            "importance": None,
            "requests": {"req_a": FORGET},
            "selector": "records",
            "forget_classes": [],
            "policy": "fast",
            "ladder": [{"name": "fine_tune", "epochs": 1}, RETRAIN],
            "seed": 7,
            "batch_size": 64,
            "bn_policy": "recalibrate",
            "time_limit_seconds": 600.0,
            "device": "cpu",
        }
        return unlearn(**{**usual, **changes})

    return run


@pytest.fixture
def register(monkeypatch):
    """Make a function an unlearner called ``sabotage`` for one test, exact or not."""

    def register(unlearn, *, exact=False):
        is_exact = exact

        class SabotageConfig(UnlearnerOptions):
            """For a test."""

            name: Literal["sabotage"] = "sabotage"
            exact: ClassVar[bool] = is_exact
            source: ClassVar[str] = "this test"

        entry = Entry("sabotage", "For a test.", SabotageConfig, unlearn)
        monkeypatch.setitem(unlearners._entries, "sabotage", entry)
        return {"name": "sabotage"}

    return register


def loaded(path):
    model = networks.build(networks.parse(world().architecture), seed=99)
    weights.load(path, model)
    return model


def statuses(result):
    return [(rung["unlearner"]["name"], rung["status"]) for rung in result["rungs"]]


def test_a_refused_rung_is_kept_and_the_next_one_is_published(run, tmp_path):
    result = run()
    assert statuses(result) == [("fine_tune", "refused"), ("retrain", "published")]
    assert (result["outcome"], result["published"], result["code"]) == ("erased_exact", 1, None)
    refused, published = result["rungs"]
    assert [refused["exact"], published["exact"]] == [False, True]
    assert refused["reason"].startswith(("failed", "inconclusive"))
    for rung in result["rungs"]:
        assert {gate["kind"] for gate in rung["gates"]} == {"utility", "forgetting", "sanity"}
        assert {finding["audit"] for finding in rung["findings"]} >= {"accuracy", "membership"}
        assert rung["seconds"] > 0
        assert rung["audit_seconds"] > 0
        for shares in (rung["histogram"][side] for side in ("forget", "holdout")):
            assert sum(shares) == pytest.approx(1.0)
    assert result["reason"] == published["reason"]
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_what_no_model_could_pass_is_not_waited_for(run, register):
    forbidden = register(lambda problem, config: 1 / 0)
    result = run(policy="standard", ladder=[forbidden, forbidden, RETRAIN])
    assert statuses(result) == [("sabotage", "skipped")] * 2 + [("retrain", "published")]
    reason = result["rungs"][0]["reason"]
    assert "no power with 60 records" in reason
    assert "even a perfect model would pass with probability 0.00" in reason


def test_what_no_model_could_pass_is_tried_where_nothing_exact_follows(run, register):
    rung = register(lambda problem, config: problem.model)
    result = run(policy="standard", ladder=[rung, RETRAIN, rung], recipe=None)
    assert [status for _, status in statuses(result)] == ["errored", "skipped", "errored"]


def test_the_digest_is_that_of_the_file_and_the_file_is_the_model(run, tmp_path):
    result = run(ladder=[RETRAIN])
    file = tmp_path / result["weights"]
    assert hashlib.sha256(file.read_bytes()).hexdigest() == result["digest"]
    model = loaded(file)
    assert weights.digest(model) == result["digest"]
    assert not weights.equal(model, trained(world()))
    right = model.eval()(world().holdout.images).argmax(1) == world().holdout.labels
    assert float(right.float().mean()) > 0.5


def test_repro_same_seed_same_digest(run):
    digests = [run(ladder=[RETRAIN], seed=seed)["digest"] for seed in (7, 7, 8)]
    assert digests[0] == digests[1] != digests[2]


def test_repro_even_for_an_unlearner_that_draws_from_the_global_generator(run, register):
    drawn = []

    def draw(problem, config):
        drawn.append(torch.rand(3).tolist())
        raise Diverged("seen enough")

    rung = register(draw)
    for seed in (7, 7, 8):
        run(ladder=[rung], seed=seed)
    assert drawn[0] == drawn[1] != drawn[2]


def test_rungs_work_on_copies_of_the_parent(run, register, files):
    seen = []

    def spoil(problem, config):
        seen.append(weights.digest(problem.model))
        with torch.no_grad():
            for parameter in problem.model.parameters():
                parameter.zero_()
        return problem.model

    spoiler = register(spoil)
    result = run(ladder=[spoiler, spoiler, RETRAIN])
    assert seen == [weights.digest(loaded(files["weights"]))] * 2
    assert statuses(result)[:2] == [("sabotage", "refused")] * 2
    assert "utility" in result["rungs"][0]["reason"]
    assert result["outcome"] == "erased_exact"


def test_doing_nothing_is_an_error_of_the_rung(run, register):
    rung = register(lambda problem, config: problem.model)
    result = run(ladder=[rung, RETRAIN])
    assert statuses(result) == [("sabotage", "errored"), ("retrain", "published")]
    assert result["rungs"][0]["reason"].startswith("nothing_changed: ")


def test_claiming_to_be_exact_does_not_publish_an_unchanged_model(run, register, tmp_path):
    rung = register(lambda problem, config: problem.model, exact=True)
    result = run(ladder=[rung])
    assert (result["outcome"], result["code"]) == ("not_erased", "ladder_exhausted")
    assert list(tmp_path.iterdir()) == []


def raising(error):
    def unlearn(problem, config):
        problem.tried.append({"strength": 3})
        raise error

    return unlearn


@pytest.mark.parametrize(
    ("error", "verdict", "value"),
    [
        (Diverged("the loss is NaN"), "failed", 0.0),
        (Infeasible("no strength"), "failed", 0.0),
        (NothingChanged("same"), "failed", 0.0),
        (MissingEvidence("no tuning records"), "inconclusive", None),
        (InvalidInput("recipe_invalid", "batches of one"), "inconclusive", None),
    ],
)
def test_a_rung_that_raises_is_kept_with_its_reason(run, register, error, verdict, value):
    result = run(ladder=[register(raising(error)), RETRAIN])
    assert statuses(result) == [("sabotage", "errored"), ("retrain", "published")]
    first = result["rungs"][0]
    assert first["reason"] == f"{error.code}: {error}"
    assert first["tried"] == [{"strength": 3}]
    assert first["gates"] == []
    (finding,) = first["findings"]
    assert (finding["verdict"], finding["value"]) == (verdict, value)
    assert finding["reason"] == first["reason"]


def test_an_exploding_loss_ends_the_rung_with_a_finding_and_not_the_job(run, register):
    def rush(problem, config):
        return fit(
            problem.model, problem.retain, problem.recipe, seed=0, device=CPU, epochs=1, lr=20.0
        )

    result = run(ladder=[register(rush), RETRAIN])
    assert statuses(result) == [("sabotage", "errored"), ("retrain", "published")]
    (finding,) = result["rungs"][0]["findings"]
    assert finding["verdict"] == "failed"
    assert finding["reason"].startswith("diverged: the loss exploded")


def test_a_bug_in_an_unlearner_is_not_taken_for_a_verdict(run, register):
    with pytest.raises(ZeroDivisionError):
        run(ladder=[register(lambda problem, config: 1 / 0), RETRAIN])


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("an accelerator's")])
def test_a_rung_without_enough_memory_leaves_the_next_one_its_chance(run, register, error):
    hungry = register(raising(error))
    result = run(ladder=[hungry, RETRAIN])
    assert statuses(result) == [("sabotage", "errored"), ("retrain", "published")]
    assert result["rungs"][0]["reason"].startswith("out_of_memory: ")
    with pytest.raises(type(error)):
        run(ladder=[hungry])


def test_a_model_that_is_not_finite_is_an_error_of_the_rung(run, register):
    def poison(problem, config):
        with torch.no_grad():
            next(problem.model.parameters()).fill_(float("nan"))
        return problem.model

    result = run(ladder=[register(poison)])
    assert result["rungs"][0]["reason"].startswith("diverged: ")
    assert result["published"] is None


def test_a_spent_time_limit_fails_the_rungs(run, tmp_path):
    result = run(time_limit_seconds=0.0)
    assert statuses(result) == [("fine_tune", "errored"), ("retrain", "errored")]
    assert all(rung["reason"].startswith("out_of_time: ") for rung in result["rungs"])
    assert (result["outcome"], result["code"]) == ("not_erased", "ladder_exhausted")
    assert list(tmp_path.iterdir()) == []


def test_a_rung_that_runs_over_the_limit_is_stopped(run, register, monkeypatch):
    now = time.monotonic

    def dawdle(problem, config):
        monkeypatch.setattr(time, "monotonic", lambda: now() + 7200)
        problem.check_time()
        raise AssertionError("the limit was not noticed")

    result = run(ladder=[register(dawdle)], time_limit_seconds=3600.0)
    assert result["rungs"][0]["reason"].startswith("out_of_time: ")


def test_without_a_recipe_nothing_is_published_and_the_code_says_so(run, tmp_path):
    result = run(recipe=None, requests={"req_a": FORGET[:3]})
    assert statuses(result) == [("fine_tune", "refused"), ("retrain", "skipped")]
    assert result["rungs"][1]["reason"] == (
        "retrain needs the recipe: no recipe was registered with the model"
    )
    assert (result["outcome"], result["published"]) == ("not_erased", None)
    assert result["code"] == "evidence_insufficient"
    assert (result["weights"], result["digest"]) == (None, None)
    assert "retrain needs the recipe" in result["reason"]
    assert list(tmp_path.iterdir()) == []


def test_no_rung_at_all_is_insufficient_evidence(run):
    result = run(ladder=[])
    assert (result["code"], result["rungs"]) == ("evidence_insufficient", [])
    assert result["reason"]


@pytest.mark.parametrize(
    ("role", "code"), [("reported", "evidence_insufficient"), ("must_pass", "ladder_exhausted")]
)
def test_a_gate_that_is_only_reported_exhausts_no_ladder(role, code):
    gate = unmeasured("membership_auc", "forgetting", "auc_margin", (0.45, 0.55), role, "")
    failed = gate.model_copy(update={"verdict": "failed"})
    rung = Rung(index=0, unlearner={}, exact=False, status="refused", reason="", gates=[failed])
    assert _refusal([rung]) == code


def test_without_a_holdout_approximate_rungs_are_skipped(run):
    result = run(holdout=None, ladder=[{"name": "fine_tune"}, {"name": "ssd"}, RETRAIN])
    assert statuses(result) == [
        ("fine_tune", "skipped"),
        ("ssd", "skipped"),
        ("retrain", "published"),
    ]
    assert "holdout" in result["rungs"][0]["reason"]
    only = run(holdout=None, ladder=[{"name": "fine_tune"}])
    assert (only["outcome"], only["code"]) == ("not_erased", "evidence_insufficient")


def test_the_exact_policy_skips_approximate_rungs(run):
    result = run(policy="exact")
    assert statuses(result) == [("fine_tune", "skipped"), ("retrain", "published")]


def test_a_class_is_forgotten(run):
    rows = (world().train.labels == 2).nonzero().flatten().tolist()
    result = run(requests={"req_a": rows}, selector="class", forget_classes=[2], ladder=[RETRAIN])
    gates = {gate["name"]: gate for gate in result["rungs"][0]["gates"]}
    assert {"class_accuracy", "membership_auc", "utility", "worst_class"} <= set(gates)
    assert gates["class_accuracy"]["value"] == 0.0
    assert "of the classes that stay" in gates["utility"]["reason"]
    assert result["outcome"] == "erased_exact"


def test_every_request_has_evidence_of_its_own(run):
    result = run(requests={"req_a": list(range(5)), "req_b": list(range(5, 60))}, ladder=[RETRAIN])
    rung = result["rungs"][0]
    own = rung["per_request"]
    assert set(own) == {"req_a", "req_b"}
    counts = {
        request: {gate["name"]: gate["examples"] for gate in evidence["gates"]}
        for request, evidence in own.items()
    }
    assert counts == {
        "req_a": {"membership_auc": 5, "forget_accuracy": 5},
        "req_b": {"membership_auc": 55, "forget_accuracy": 55},
    }
    assert "no power with 5 records" in own["req_a"]["gates"][0]["reason"]
    union = next(gate for gate in rung["gates"] if gate["name"] == "membership_auc")
    assert union["examples"] == 60
    for request, evidence in own.items():
        assert {finding["scope"] for finding in evidence["findings"]} == {"forget"}
        accuracy = next(f for f in evidence["findings"] if f["measure"] == "accuracy")
        assert accuracy["examples"] == {"req_a": 5, "req_b": 55}[request]


def test_the_evidence_of_a_request_is_that_of_its_records(run, tmp_path):
    result = run(requests={"req_a": [3, 1, 2], "req_b": list(range(10, 60))}, ladder=[RETRAIN])
    model = loaded(tmp_path / "model.safetensors").eval()
    for request, rows in {"req_a": [1, 2, 3], "req_b": list(range(10, 60))}.items():
        records = world().train.take(rows)
        right = (model(records.images).argmax(1) == records.labels).double().mean()
        findings = result["rungs"][0]["per_request"][request]["findings"]
        found = next(f for f in findings if f["measure"] == "accuracy")
        assert found["value"] == pytest.approx(float(right))


def test_excluded_rows_take_no_part(run, files, tmp_path):
    """Whatever they hold now: the same model comes out, and the same numbers."""
    excluded = list(range(100, 140))
    table = pq.read_table(files["dataset"]).to_pydict()
    for row in excluded:
        table["label"][row] = (table["label"][row] + 1) % 4
        table["features"][row] = [1e6] * len(table["features"][row])
    poisoned = tmp_path / "poisoned.parquet"
    schema = pq.read_schema(files["dataset"])
    pq.write_table(pq.read_table(files["dataset"]).from_pydict(table, schema=schema), poisoned)
    ladder = [{"name": "fine_tune", "epochs": 1}, {"name": "ssd", "selection": "adaptive"}, RETRAIN]
    first, second = (
        run(excluded=excluded, ladder=ladder, dataset=path, holdout=path)
        for path in (files["dataset"], poisoned)
    )
    assert first["digest"] == second["digest"]
    assert timeless(first) == timeless(second)
    kept = run(ladder=ladder)
    assert kept["digest"] != first["digest"]


def timeless(result):
    return [
        {key: value for key, value in rung.items() if "seconds" not in key}
        for rung in result["rungs"]
    ]


@pytest.mark.parametrize("rows", [[100], [240], [10_000], [5, 100], []])
def test_rows_that_were_forgotten_before_or_never_trained_are_refused(run, rows):
    with pytest.raises(InvalidInput) as caught:
        run(excluded=[100], requests={"req_a": rows})
    assert caught.value.code == "records_not_found"


def measured(run, stored):
    ladder = [{"name": "ssd", "selection": "adaptive"}]
    result = run(importance=stored, ladder=ladder, requests={"req_a": FORGET})
    return result["rungs"][0]["tried"][0]["importance"]


def test_stored_importance_is_used_for_the_weights_it_was_made_for_only(run, tmp_path):
    model = trained(world())
    options = {"batch_size": 64, "device": CPU, "seed": 7}
    made = importance.estimate(model, world().train, "fisher_persample", **options)
    fitting, foreign = tmp_path / "fitting", tmp_path / "foreign"
    importance.save(made, fitting)
    importance.save(dataclasses.replace(made, weights="0" * 64), foreign)
    assert measured(run, fitting) == "stored"
    assert measured(run, foreign) == "measured"
    assert measured(run, None) == "measured"


def test_what_prepare_stores_is_what_a_job_uses(run, files, tmp_path):
    result = prepare(
        out=tmp_path,
        **files,
        architecture=world().architecture,
        preprocessing={},
        recipe=world().recipe.model_dump(mode="json"),
        excluded=[],
        split_key="key",
        seed=0,
        batch_size=64,
        device="cpu",
    )
    assert measured(run, tmp_path / result["importance"]) == "stored"


def test_phases_are_told_in_order(run):
    told = []
    run(report=lambda *event: told.append(event))
    phases = [phase for phase, _ in itertools.groupby(event[0] for event in told)]
    rung = ["unlearning", "auditing"]
    assert phases == ["resolving", *rung, *rung, "publishing"]
    for phase, progress, left, which, _ in told:
        assert 0.0 <= progress <= 1.0
        assert left is None or left >= 0
        assert (which is None) == (phase in ("resolving", "publishing"))
    rungs = [event[3] for event in told if event[3]]
    assert rungs[0] == {"index": 0, "of": 2, "method": "fine_tune"}
    assert rungs[-1] == {"index": 1, "of": 2, "method": "retrain"}
    for phase in ("unlearning", "auditing"):
        for index in (0, 1):
            done = [e[1] for e in told if e[0] == phase and e[3]["index"] == index]
            assert done == sorted(done)
    assert told[-1][:3] == ("publishing", 1.0, 0.0)


def test_weights_that_are_not_finite_are_refused_before_anything_is_tried(run, tmp_path):
    model = trained(world())
    next(model.parameters()).data.view(-1)[0] = float("inf")
    with pytest.raises(InvalidInput) as caught:
        run(weights=write_checkpoint(model, tmp_path / "broken.safetensors"))
    assert caught.value.code == "model_non_finite"


@pytest.mark.parametrize(("looks", "tried_before"), [(2, []), (5, ["fine_tune"])])
def test_an_interrupted_job_goes_on_at_its_rung(run, tmp_path, looks, tried_before):
    """Steps of the first rung are 3; whatever rung is at work, none before it is tried again."""
    expected = run()

    class Stopping(Keeper):
        left = 0

        @property
        def is_due(self):
            self.left -= 1
            if self.left == 0:
                self.interrupt()
            return super().is_due

    first = Stopping(tmp_path, seconds=3600.0)
    first.left = looks
    with pytest.raises(Interrupted):
        run(keeper=first)
    found, ignored = tmp_path / "checkpoint-1.safetensors", []
    told = []
    keeper = Keeper(tmp_path, seconds=3600.0, found=found, ignored=ignored.append)
    assert [rung["unlearner"]["name"] for rung in keeper.notes["rungs"]] == tried_before
    result = run(keeper=keeper, report=lambda phase, *rest: told.append((phase, rest[2])))
    assert statuses(result) == [("fine_tune", "refused"), ("retrain", "published")]
    assert result["digest"] == expected["digest"]
    tried = {rung["method"] for phase, rung in told if rung is not None}
    assert tried == {"fine_tune", "retrain"} - set(tried_before)
    assert ignored == []


def test_a_checkpoint_of_another_job_is_not_used(run, tmp_path):
    first = Keeper(tmp_path, seconds=0.0)
    run(keeper=first)
    found, ignored = tmp_path / "checkpoint-4.safetensors", []
    keeper = Keeper(tmp_path, seconds=3600.0, found=found, ignored=ignored.append)
    result = run(keeper=keeper, seed=8)
    assert statuses(result) == [("fine_tune", "refused"), ("retrain", "published")]
    assert result["digest"] == run(seed=8)["digest"]
    assert ignored == ["other_work"]
