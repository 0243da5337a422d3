"""A hundred requests in a row: nothing forgotten is learned from again, all of it is looked at."""

import dataclasses
import functools

import pytest
import torch

from core import earlier, networks, roles
from core import weights as core_weights
from core.data import Dataset, Preprocessing
from core.ingest import ingest
from core.ladder import unlearn
from core.unlearners import unlearners
from tests.core import cases
from tests.worlds import CPU, gaussian_world, trained, write_checkpoint, write_dataset

LADDER = [{"name": "fine_tune", "epochs": 1, "lr": 0.01}, {"name": "retrain"}]


@functools.cache
def world():
    return gaussian_world(num_train=400, num_holdout=400, hidden=8, epochs=3)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
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
            "selector": "records",
            "forget_classes": [],
            "policy": "fast",
            "ladder": LADDER,
            "seed": 7,
            "batch_size": 400,
            "bn_policy": "recalibrate",
            "time_limit_seconds": 600.0,
            "device": "cpu",
        }
        return unlearn(**{**usual, **changes})

    return run


@pytest.fixture
def learned(monkeypatch):
    """Rows that any unlearner was given, other than to forget them."""
    seen = []

    def watch(entry):
        def watched(problem, config):
            seen.append(set(problem.retain.rows.tolist()))
            return entry.run(problem, config)

        return watched

    for name in ("fine_tune", "retrain"):
        entry = unlearners[name]
        changed = dataclasses.replace(entry, run=watch(entry))
        monkeypatch.setitem(unlearners._entries, name, changed)
    return seen


def again(result):
    """Findings about earlier requests, by request and measure."""
    findings = result["rungs"][result["published"]]["findings"]
    return {
        (finding["scope"].removeprefix("earlier/"), finding["measure"]): finding
        for finding in findings
        if finding["scope"].startswith("earlier/")
    }


@pytest.mark.parametrize("count", [12, pytest.param(100, marks=pytest.mark.slow)])
def test_a_hundredth_request_works_like_the_first(run, files, learned, tmp_path, count):
    forgotten, weights = {}, files["weights"]
    for number in range(count):
        out = tmp_path / str(number)
        out.mkdir()
        excluded = [row for rows in forgotten.values() for row in rows]
        asked = {f"req_{number}": [2 * number, 2 * number + 1]}
        watched = forgotten if number in (1, count // 2, count - 1) else {}
        learned.clear()
        result = run(out=out, weights=weights, excluded=excluded, requests=asked, earlier=watched)
        assert result["published"] is not None, result["reason"]
        assert learned
        for rows in learned:
            assert not rows & {*excluded, *asked[f"req_{number}"]}
        assert {request for request, _ in again(result)} == set(watched)
        weights, forgotten = out / result["weights"], {**forgotten, **asked}
    told = again(result)
    assert len(told) == 2 * (count - 1)
    assert {finding["examples"] for finding in told.values()} <= {1, 2}
    right = sum(2 * finding["value"] for (_, m), finding in told.items() if m == "accuracy")
    model = world().fresh()
    core_weights.load(weights, model)
    records = world().train.take(range(2 * (count - 1)))
    found = (model.eval()(records.images).argmax(1) == records.labels).sum()
    assert right == pytest.approx(float(found))


def test_earlier_records_change_nothing_but_the_findings(run):
    shared = {"excluded": [*range(50)], "requests": {"req_b": [*range(50, 70)]}}
    alone = run(**shared)
    watched = run(**shared, earlier={"req_a": [*range(50)]})
    assert watched["digest"] == alone["digest"]
    assert again(alone) == {}
    told = again(watched)
    assert set(told) == {("req_a", "accuracy"), ("req_a", "auc_margin")}
    assert told["req_a", "auc_margin"]["interval"] is not None
    assert told["req_a", "accuracy"]["reference_name"] == "before"
    assert alone["rungs"][-1]["earlier"] == {}
    gates = {gate["name"]: gate for gate in watched["rungs"][-1]["earlier"]["req_a"]}
    assert set(gates) == {"membership_auc", "forget_accuracy"}
    for gate in gates.values():
        assert (gate["role"], gate["kind"]) == ("reported", "forgetting")
        assert gate["power"] is not None
        assert gate["band"][1] - gate["band"][0] == pytest.approx(0.1)
    assert told["req_a", "auc_margin"]["verdict"] == gates["membership_auc"]["verdict"]
    assert watched["rungs"][-1]["gates"] == alone["rungs"][-1]["gates"]


@functools.cache
def memorising():
    """A world whose model knows its records, and one that never saw the first half of them."""
    found = cases.noise_world(num_train=800, num_holdout=4000, noise_dims=200)
    return found, cases.oracle(found, cases.first(found, 400))


@pytest.mark.parametrize("comes_back", [True, False])
def test_what_comes_back_is_seen_though_the_parent_knew_nothing_of_it(comes_back):
    found, clean = memorising()
    given = cases.evidence(found, trained(found) if comes_back else clean, cases.first(found, 400))
    parent = cases.evidence(found, clean, cases.first(found, 400))
    given = dataclasses.replace(
        given, before=clean, scores={**given.scores, "before": parent.scores["after"]}
    )
    forgotten = {"req_a": given.forget, "req_b": given.forget.take(range(5))}
    again = earlier.look_again(given, forgotten, batch_size=400, device=CPU)
    auc, accuracy = again.gates["req_a"]
    assert auc.power > 0.5
    assert (auc.verdict == "failed") == comes_back, auc.reason
    assert accuracy.verdict != ("passed" if comes_back else "failed"), accuracy.reason
    assert again.came_back == (["req_a"] if comes_back else [])
    assert {gate.verdict for gate in again.gates["req_b"]} == {"inconclusive"}


def test_what_came_back_is_named_and_blocks_nothing(run, monkeypatch):
    monkeypatch.setattr(earlier.Again, "came_back", ["req_a"])
    result = run(excluded=[0, 1], requests={"req_b": [2]}, earlier={"req_a": [0, 1]})
    assert result["published"] is not None
    assert result["reason"].endswith("; forgotten before, and recognised again: req_a")


def test_a_rung_that_is_not_published_looks_at_nothing(run):
    result = run(
        excluded=[0, 1],
        requests={"req_b": [*range(2, 60)]},
        earlier={"req_a": [0, 1]},
        policy="exact",
    )
    skipped, published = result["rungs"]
    assert (skipped["status"], skipped["findings"]) == ("skipped", [])
    assert published["exact"]
    assert again(result)


def test_without_a_holdout_the_attack_on_earlier_records_is_inconclusive(run):
    result = run(holdout=None, excluded=[0, 1], requests={"req_b": [2]}, earlier={"req_a": [0, 1]})
    attack = again(result)["req_a", "auc_margin"]
    assert (attack["value"], attack["verdict"]) == (None, "inconclusive")
    assert attack["reason"]
    gates = result["rungs"][result["published"]]["earlier"]["req_a"]
    assert {gate["verdict"] for gate in gates} == {"inconclusive"}
    assert again(result)["req_a", "accuracy"]["value"] is not None


@pytest.mark.parametrize(
    ("sizes", "read"),
    [
        ([5, 300], {"req_0": 5, "req_1": 300}),
        ([], {}),
        ([0, 3], {"req_1": 3}),
    ],
)
def test_small_lineages_are_read_whole(files, sizes, read):
    starts = [sum(sizes[:place]) for place in range(len(sizes))]
    rows = {
        f"req_{place}": [*range(start, start + size)]
        for place, (start, size) in enumerate(zip(starts, sizes, strict=True))
    }
    found = earlier.read(Dataset.open(files["dataset"]), rows, Preprocessing())
    assert {request: len(records) for request, records in found.items()} == read
    for request, records in found.items():
        assert records.rows.tolist() == rows[request]
        assert torch.equal(records.images, world().train.take(rows[request]).images)


def test_long_lineages_are_sampled(files, monkeypatch):
    monkeypatch.setattr(earlier, "MOST_RECORDS", 100)
    rows = {"req_a": [*range(300)], "req_b": [*range(300, 320)]}
    opened = Dataset.open(files["dataset"])
    found = earlier.read(opened, rows, Preprocessing())
    assert {request: len(records) for request, records in found.items()} == {
        "req_a": 50,
        "req_b": 20,
    }
    assert set(found["req_a"].rows.tolist()) < set(rows["req_a"])
    same = earlier.read(opened, rows, Preprocessing())
    assert torch.equal(same["req_a"].rows, found["req_a"].rows)


def test_earlier_records_are_no_training_records(files):
    known = roles.read(
        dataset=files["dataset"],
        holdout=None,
        preprocessing=Preprocessing(),
        excluded=[0, 1, 2],
        split_key="key",
        forgotten={"req_a": [0, 1, 2]},
    )
    assert known.train.rows.tolist() == [*range(3, 400)]
    assert known.earlier["req_a"].rows.tolist() == [0, 1, 2]


def test_what_is_never_learned_does_not_keep_a_model_from_being_retrained_twice(run, tmp_path):
    """Both times with the same seed; here nothing at all moves."""
    recipe = world().recipe.model_dump(mode="json")
    recipe["optimizer"] |= {"lr": 1e-30, "weight_decay": 0.0}
    untrained = networks.build(networks.parse(world().architecture), seed=1)
    parent = write_checkpoint(untrained, tmp_path / "untrained.safetensors")
    for rows in ([0], [1]):
        result = run(
            weights=parent,
            recipe=recipe,
            excluded=[*range(rows[0])],
            requests={"r": rows},
            ladder=[{"name": "retrain"}],
        )
        assert result["outcome"] == "erased_exact", result["reason"]
        parent = (tmp_path / result["weights"]).rename(tmp_path / "parent.safetensors")
