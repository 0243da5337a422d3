"""After an upload: what is measured is right, and what does not fit is refused with a code."""

from dataclasses import replace

import pytest
import torch
from torchvision.models import VisionTransformer

from core import importance, networks, weights
from core.data import split_holdout
from core.errors import InvalidInput
from core.findings import Finding
from core.ingest import ingest
from core.measures import accuracy_per_class, cross_entropy, margin
from core.prepare import IMPORTANCE_FILE, prepare
from core.scores import gather, match_classes
from tests.core import cases
from tests.worlds import (
    CPU,
    accuracy,
    digits_world,
    gaussian_world,
    trained,
    write_checkpoint,
    write_dataset,
)

WORLD = cases.small_world()
PICTURES = digits_world(num_records=120, epochs=1)


@pytest.fixture
def run(tmp_path):
    """Prepare a world's trained model in this test's folder; arguments of ``prepare`` may vary."""

    def run(world=WORLD, model=None, **changes):
        records = canonical(world, tmp_path)
        model = trained(world) if model is None else model
        given = {
            "out": tmp_path,
            "weights": write_checkpoint(model, tmp_path / "w.safetensors"),
            "architecture": world.architecture,
            "preprocessing": world.preprocessing.model_dump(mode="json"),
            "dataset": records,
            "holdout": records,
            "recipe": world.recipe.model_dump(mode="json"),
            "excluded": [],
            "split_key": "key",
            "seed": 3,
            "batch_size": 64,
            "device": "cpu",
        }
        return prepare(**{**given, **changes})

    return run


def canonical(world, folder):
    folder.mkdir(exist_ok=True)
    source = write_dataset(world, folder / "upload.parquet")
    ingest(source=source, out=folder, max_records=10_000)
    return folder / "records.parquet"


def findings(result):
    parsed = [Finding.model_validate(raw) for raw in result["findings"]]
    return {(finding.measure, finding.scope): finding for finding in parsed}


def judging_half(world):
    ids = [world.ids[row] for row in world.holdout.rows.tolist()]
    return world.holdout.take(~split_holdout(ids, "key"))


def refused(run, *args, **changes):
    with pytest.raises(InvalidInput) as caught:
        run(*args, **changes)
    return caught.value


def test_the_baseline_is_accuracy_and_loss_on_training_and_judging_records(run):
    result, model = run(), trained(WORLD)
    found = findings(result)
    for role, records in (("train", WORLD.train), ("holdout", judging_half(WORLD))):
        logits = gather(model, records, batch_size=500, device=CPU)
        whole, loss = found["accuracy", role], found["loss", role]
        assert whole.value == pytest.approx(accuracy(model, records))
        assert whole.interval[0] <= whole.value <= whole.interval[1]
        assert whole.examples == loss.examples == len(records)
        expected = float(cross_entropy(logits, records.labels).mean())
        assert (loss.value, loss.unit) == (pytest.approx(expected, rel=1e-5), "nats")
        for label, estimate in accuracy_per_class(logits, records.labels).items():
            mine = found["accuracy", f"{role}/class={label}"]
            assert mine.value == pytest.approx(estimate.value)
            assert mine.examples == int((records.labels == label).sum())
    assert result["num_parameters"] == sum(p.numel() for p in model.parameters())


def test_the_baseline_says_how_well_members_are_told_from_others(run):
    model, judging = trained(WORLD), judging_half(WORLD)
    members, others = (
        margin(gather(model, r, batch_size=500, device=CPU), r.labels)
        for r in (WORLD.train, judging)
    )
    match = match_classes(WORLD.train.labels, judging.labels)
    pairs = members[match.forget][:, None] - others[match.others]
    wins = (pairs > 0).double() + (pairs == 0).double() / 2
    expected = float((wins.mean(0) * match.weights).sum())
    finding = findings(run())["auc_margin", "train"]
    assert finding.value == pytest.approx(expected, abs=1e-6)
    assert finding.value > 0.55
    assert finding.interval[0] < finding.value < finding.interval[1]


def test_stored_importance_equals_a_direct_estimate(run, tmp_path):
    result, model = run(), trained(WORLD)
    assert result["importance"] == IMPORTANCE_FILE
    stored = importance.load(tmp_path / IMPORTANCE_FILE)
    direct = importance.estimate(
        model, WORLD.train, "fisher_persample", batch_size=1000, device=CPU
    )
    assert (stored.estimator, stored.n) == ("fisher_persample", len(WORLD.train))
    assert (stored.data, stored.weights) == (WORLD.train.digest(), weights.digest(model))
    assert stored.values.keys() == direct.values.keys()
    for name, value in direct.values.items():
        torch.testing.assert_close(stored.values[name], value, rtol=1e-4, atol=1e-8)


def test_without_training_data_there_is_no_importance(run, tmp_path):
    result = run(dataset=None)
    assert result["importance"] is None
    assert not (tmp_path / IMPORTANCE_FILE).exists()
    assert {scope.partition("/")[0] for _, scope in findings(result)} == {"holdout"}


def test_without_a_holdout_the_training_records_alone_are_measured(run):
    result = run(holdout=None)
    assert {scope.partition("/")[0] for _, scope in findings(result)} == {"train"}
    assert ("auc_margin", "train") not in findings(result)
    assert result["importance"] == IMPORTANCE_FILE


def test_excluded_rows_take_no_part(run, tmp_path):
    model = trained(WORLD)
    gone = (gather(model, WORLD.train, batch_size=500, device=CPU).argmax(1) == 0).nonzero()
    excluded = gone.flatten().tolist()
    kept = WORLD.train.take(~torch.isin(WORLD.train.rows, torch.tensor(excluded)))
    whole = findings(run(excluded=excluded))["accuracy", "train"]
    assert 0 < len(excluded) < len(WORLD.train)
    assert (whole.examples, whole.value) == (len(kept), pytest.approx(accuracy(model, kept)))
    stored = importance.load(tmp_path / IMPORTANCE_FILE)
    assert (stored.n, stored.data) == (len(kept), kept.digest())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("tensor", ["0.weight", "1.running_var"])
def test_B27_weights_that_are_not_finite_are_refused(run, value, tensor):
    model = trained(PICTURES)
    model.state_dict()[tensor].view(-1)[-1] = value
    error = refused(run, PICTURES, model)
    assert error.code == "model_non_finite"
    assert tensor in error.detail


def test_scores_that_are_not_finite_are_refused(run):
    model = trained(WORLD)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(3e38)
    assert refused(run, model=model).code == "model_non_finite"


def test_labels_beyond_the_network_are_refused(run):
    architecture = {**WORLD.architecture, "num_classes": 3}
    model = networks.build(networks.parse(architecture), seed=0)
    error = refused(run, model=model, architecture=architecture)
    assert error.code == "dataset_values_invalid"
    assert error.detail == "labels go up to 3, the network has 3 classes"


@pytest.mark.parametrize("keep", [True, False], ids=["tuning half", "judging half"])
def test_labels_of_the_holdout_count_as_well(run, tmp_path, keep):
    ids = [f"record-{row}" for row in range(len(WORLD.holdout))]
    beyond = (split_holdout(ids, "key") == keep).nonzero().flatten()[0]
    labels = WORLD.holdout.labels.clone()
    labels[beyond] = 4
    count = len(labels)
    other = replace(
        WORLD,
        train=replace(WORLD.holdout, labels=labels, rows=torch.arange(count)),
        holdout=replace(WORLD.train, rows=torch.arange(count, count + len(WORLD.train))).take([]),
    )
    error = refused(run, holdout=canonical(other, tmp_path / "other"))
    assert error.code == "dataset_values_invalid"


@pytest.mark.parametrize(
    ("world", "architecture"),
    [
        (WORLD, {"name": "mlp", "in_features": 11}),
        (WORLD, {"name": "linear", "in_features": 9}),
        (WORLD, {"name": "convnet"}),
        (WORLD, {"name": "vit", "hidden": 8, "depth": 1}),
        (PICTURES, {"name": "convnet", "in_channels": 3}),
        (PICTURES, {"name": "mlp", "in_features": 65}),
        (PICTURES, {"name": "vit", "in_channels": 1, "image_size": 16, "hidden": 8, "depth": 1}),
        (PICTURES, {"name": "torchvision/squeezenet1_1"}),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_records_that_the_network_cannot_take_are_refused(run, world, architecture):
    architecture = {**architecture, "num_classes": world.num_classes}
    model = networks.build(networks.parse(architecture), seed=0)
    error = refused(run, world, model, architecture=architecture)
    assert error.code == "dataset_values_invalid"
    shape = list(world.train.images.shape[1:])
    assert error.detail == f"the network can't take records of shape {shape}"


def test_a_network_that_asserts_its_input_size_is_no_crash(run, monkeypatch):
    model = VisionTransformer(224, 32, 1, 1, 8, 8, num_classes=10).eval()
    monkeypatch.setattr(networks, "build", lambda *_: model)
    preprocessing = {"height": 32, "width": 32, "channels": 3, "resize": "bilinear"}
    architecture = {"name": "torchvision/vit_b_32", "num_classes": 10}
    error = refused(run, PICTURES, model, architecture=architecture, preprocessing=preprocessing)
    assert (error.code, error.detail) == (
        "dataset_values_invalid",
        "the network can't take records of shape [3, 32, 32]",
    )


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")]
)
def test_too_little_memory_is_not_the_fault_of_the_records(run, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("core.prepare.gather", fail)
    with pytest.raises(type(error), match=str(error)):
        run()


def test_the_kind_of_records_must_be_the_one_that_preprocessing_is_for(run):
    preprocessing = PICTURES.preprocessing.model_dump(mode="json")
    assert refused(run, preprocessing=preprocessing).code == "dataset_values_invalid"


def test_the_same_upload_gives_the_same_answer(run):
    world = gaussian_world(num_train=60, num_holdout=60, hidden=8, epochs=2)
    assert run(world) == run(world)
