"""Without the training data: stored importance from outside, and records sent to be forgotten."""

import dataclasses
import functools

import pytest
import torch

from core import importance, networks, stored, weights
from core.errors import InvalidInput
from core.importance import estimate
from core.ingest import ingest
from core.ladder import unlearn
from core.prepare import prepare
from tests.worlds import CPU, digits_world, trained, write_checkpoint, write_dataset

CLASS = 3


@functools.cache
def world():
    return digits_world(num_records=800, epochs=10)


def samples():
    """The training records of one class."""
    return world().train.take(world().train.labels == CLASS)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Weights, holdout, importance and the records to forget; the training data is not there."""
    folder = tmp_path_factory.mktemp("files")
    model = trained(world())
    for name, changed, split in (
        ("holdout", world(), "holdout"),
        ("samples", dataclasses.replace(world(), train=samples()), "train"),
    ):
        (folder / name).mkdir()
        upload = write_dataset(changed, folder / f"{name}.upload", splits=[split])
        ingest(source=upload, out=folder / name, max_records=10_000)
    options = {"batch_size": 64, "device": CPU, "seed": 0}
    made = estimate(model, world().train, "fisher_persample", **options)
    importance.save(made, folder / "importance")
    return {
        "weights": write_checkpoint(model, folder / "parent.safetensors"),
        "holdout": folder / "holdout" / "records.parquet",
        "importance": folder / "importance",
        "forget_samples": folder / "samples" / "records.parquet",
    }


@pytest.fixture
def run(files, tmp_path):
    """Run a job; keyword arguments change the usual one."""

    def run(**changes):
        usual = {
            "out": tmp_path,
            **files,
            "architecture": world().architecture,
            "preprocessing": world().preprocessing.model_dump(mode="json"),
            "dataset": None,
            "recipe": None,
            "excluded": [],
            "split_key": "key",
            "requests": {"req_a": [*range(len(samples()))]},
            "selector": "class",
            "forget_classes": [CLASS],
            "policy": "fast",
            "ladder": [{"name": "ssd", "selection": "adaptive"}],
            "seed": 7,
            "batch_size": 64,
            "bn_policy": "recalibrate",
            "time_limit_seconds": 600.0,
            "device": "cpu",
        }
        return unlearn(**{**usual, **changes})

    return run


def loaded(path):
    model = networks.build(networks.parse(world().architecture), seed=99)
    weights.load(path, model)
    return model


def test_a_class_is_dampened_by_stored_importance_alone(run):
    rung = run(ladder=[{"name": "ssd"}])["rungs"][0]
    assert rung["tried"][0] == {
        "importance": "stored",
        "estimator": "fisher_persample",
        "stale": 0,
    }
    found = {(f["audit"], f["measure"], f["scope"]): f for f in rung["findings"]}
    forget = found["accuracy", "accuracy", "forget"]
    assert forget["examples"] == len(samples())
    assert forget["value"] < forget["reference"] - 0.5
    assert found["accuracy", "accuracy", "retain"]["value"] is None
    assert rung["gates"]


def test_without_importance_the_rung_says_so(run):
    result = run(importance=None)
    assert result["rungs"][0]["status"] == "skipped"
    assert "none is stored, and no training record stays" in result["rungs"][0]["reason"]
    assert (result["published"], result["importance"]) == (None, None)
    assert result["code"] == "evidence_insufficient"


def test_importance_of_another_estimator_is_no_importance(run):
    result = run(ladder=[{"name": "ssd", "estimator": "mas", "selection": "adaptive"}])
    assert result["rungs"][0]["status"] == "skipped"
    assert "mas is taken, fisher_persample is stored" in result["rungs"][0]["reason"]


@pytest.mark.parametrize("estimator", ["fisher_batch", "mas"])
def test_means_over_batches_are_compared_with_such_of_the_same_size(
    run, files, tmp_path, monkeypatch, estimator
):
    made = estimate(loaded(files["weights"]), world().train, estimator, batch_size=32, device=CPU)
    importance.save(made, tmp_path / "made")
    sizes = []

    def counted(*args, **options):
        sizes.append(options["batch_size"])
        return estimate(*args, **options)

    monkeypatch.setattr("core.unlearners._importances.estimate", counted)
    option = {"fisher_batch": "batch", "mas": "mas"}[estimator]
    rung = {"name": "ssd", "estimator": option, "selection": "adaptive"}
    result = run(importance=tmp_path / "made", ladder=[rung], batch_size=256)
    assert result["rungs"][0]["tried"][0]["importance"] == "stored"
    assert sizes == [32]


def test_what_needs_retained_records_is_skipped(run):
    result = run(ladder=[{"name": "fine_tune"}, {"name": "retrain"}])
    assert [rung["status"] for rung in result["rungs"]] == ["skipped", "skipped"]
    assert "no training record stays" in result["rungs"][0]["reason"]


@pytest.fixture
def lenient(monkeypatch):
    """Publish whatever was made, to see what a publication leaves behind."""
    monkeypatch.setattr("core.rungs.may_publish", lambda *_: (True, "for this test"))


def test_the_importance_of_what_stays_is_left_for_the_next_request(run, lenient, files, tmp_path):
    result = run()
    assert result["importance"] == "importance.safetensors"
    left = importance.load(tmp_path / result["importance"])
    parent, child = loaded(files["weights"]), loaded(tmp_path / result["weights"])
    stored.check(left, child)
    assert (left.n, left.stale) == (len(world().train) - len(samples()), 1)
    assert result["importance_summary"] == left.summary()
    assert "no stored importance" not in result["reason"]
    retained = world().train.take(world().train.labels != CLASS)
    measured = estimate(parent, retained, "fisher_persample", batch_size=64, device=CPU)
    for name, value in measured.values.items():
        torch.testing.assert_close(left.values[name], value, rtol=1e-4, atol=1e-8)
    again = run(weights=tmp_path / result["weights"], importance=tmp_path / result["importance"])
    assert again["rungs"][0]["tried"][0]["stale"] == 1


def test_importance_that_cannot_be_subtracted_is_not_measured_again(
    run, lenient, files, tmp_path, monkeypatch
):
    made = estimate(loaded(files["weights"]), world().train, "mas", batch_size=64, device=CPU)
    importance.save(made, tmp_path / "mas")
    measured = []

    def counted(*args, **options):
        measured.append(args[2])
        return estimate(*args, **options)

    monkeypatch.setattr("core.importance.estimate", counted)
    rung = {"name": "ssd", "estimator": "mas", "selection": "adaptive"}
    result = run(importance=tmp_path / "mas", ladder=[rung])
    assert (result["published"], result["importance"], measured) == (0, None, [])
    assert result["importance_summary"] is None
    assert result["reason"].endswith(
        "the records can't be taken out of mas: no stored importance is left for later requests"
    )


def test_batch_means_cannot_be_subtracted(files):
    model = loaded(files["weights"])
    options = {"batch_size": 64, "device": CPU}
    full, forget = (
        estimate(model, r, "fisher_batch", **options) for r in (world().train, samples())
    )
    assert stored.without(full, forget, model) is None
    one = estimate(model, samples(), "fisher_persample", **options)
    assert stored.without(one, one, model) is None


def test_samples_of_the_holdout_are_refused(run, tmp_path):
    both = dataclasses.replace(world(), train=world().holdout)
    upload = write_dataset(both, tmp_path / "both", splits=["train"])
    ingest(source=upload, out=tmp_path, max_records=10_000)
    with pytest.raises(InvalidInput) as caught:
        run(forget_samples=tmp_path / "records.parquet")
    assert caught.value.code == "holdout_overlap"


def test_samples_with_a_foreign_label_are_refused(run, files, tmp_path):
    alien = dataclasses.replace(samples(), labels=samples().labels + 10)
    upload = write_dataset(
        dataclasses.replace(world(), train=alien), tmp_path / "alien", splits=["train"]
    )
    ingest(source=upload, out=tmp_path, max_records=10_000)
    with pytest.raises(InvalidInput) as caught:
        run(forget_samples=tmp_path / "records.parquet")
    assert caught.value.code == "dataset_values_invalid"


def prepared(files, out, given):
    return prepare(
        out=out,
        weights=files["weights"],
        architecture=world().architecture,
        preprocessing=world().preprocessing.model_dump(mode="json"),
        dataset=None,
        holdout=files["holdout"],
        recipe=None,
        excluded=[],
        split_key="key",
        seed=0,
        batch_size=64,
        importance=given,
        device="cpu",
    )


def test_importance_from_outside_is_kept(files, tmp_path):
    result = prepared(files, tmp_path, files["importance"])
    kept = importance.load(tmp_path / result["importance"])
    given = importance.load(files["importance"])
    assert (kept.estimator, kept.n, kept.weights) == (given.estimator, given.n, given.weights)
    assert all(torch.equal(kept.values[name], given.values[name]) for name in given.values)
    assert result["importance_summary"] == {
        "estimator": "fisher_persample",
        "num_records": len(world().train),
        "stale": 0,
    }
    without = prepared(files, tmp_path, None)
    assert (without["importance"], without["importance_summary"]) == (None, None)


def broken(given, **values):
    return dataclasses.replace(given, values={**given.values, **values})


LIES = {
    "other-weights": (lambda i: dataclasses.replace(i, weights="0" * 64), "importance_mismatch"),
    "no-records": (lambda i: dataclasses.replace(i, n=0), "importance_invalid"),
    "true-records": (lambda i: dataclasses.replace(i, n=True), "importance_invalid"),
    "half-a-record": (lambda i: dataclasses.replace(i, n=0.5), "importance_invalid"),
    "batch": (lambda i: dataclasses.replace(i, batch_size="64"), "importance_invalid"),
    "stale": (lambda i: dataclasses.replace(i, stale=-1), "importance_invalid"),
    "data": (lambda i: dataclasses.replace(i, data="mine"), "importance_invalid"),
    "estimator": (lambda i: dataclasses.replace(i, estimator="guess"), "importance_invalid"),
    "precision": (lambda i: dataclasses.replace(i, precision="fp8"), "importance_invalid"),
    "extra": (lambda i: broken(i, more=torch.zeros(1)), "importance_invalid"),
    "negative": (
        lambda i: broken(i, **{n: -v - 1 for n, v in i.values.items()}),
        "importance_invalid",
    ),
    "nan": (
        lambda i: broken(i, **{n: v * float("nan") for n, v in i.values.items()}),
        "importance_invalid",
    ),
    "shape": (
        lambda i: broken(i, **{n: v.flatten()[:1] for n, v in i.values.items()}),
        "importance_invalid",
    ),
    "dtype": (
        lambda i: broken(i, **{n: v.double() for n, v in i.values.items()}),
        "importance_invalid",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_importance_that_is_not_of_this_model_is_refused(files, tmp_path, lie):
    change, code = LIES[lie]
    importance.save(change(importance.load(files["importance"])), tmp_path / "given")
    with pytest.raises(InvalidInput) as caught:
        prepared(files, tmp_path, tmp_path / "given")
    assert caught.value.code == code
