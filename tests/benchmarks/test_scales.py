"""The scales of the studies: each can be run, the full one in folders and pages of its own."""

import sys
import tempfile
from dataclasses import replace

import pytest
import torch

from benchmarks import cifar, gates, hardware, oracles, study, tables
from benchmarks.papers import __main__ as papers
from benchmarks.papers import transfers
from benchmarks.papers.cells import METHODS, RETRAIN, Job, options_of
from benchmarks.papers.scenarios import SCENARIOS
from benchmarks.scales import FULL, SCALE, SCALES, SMALL
from core import networks
from core.data import Preprocessing, Records
from core.ladder import parse
from core.recipe import Recipe

CONVNET = {"name": "convnet", "in_channels": 1, "widths": [2, 4]}
VIT = {"name": "vit", "image_size": 4, "patch_size": 2, "in_channels": 1, "hidden": 4, "depth": 1}
SIDE, MOST = 4, 400


@pytest.fixture
def use():
    """Use a scale until the test ends."""
    tokens = []
    yield lambda scale: tokens.append(SCALE.set(scale))
    for token in reversed(tokens):
        SCALE.reset(token)


@pytest.mark.parametrize("name", SCALES)
def test_everything_of_a_scale_can_be_built(use, name):
    scale = SCALES[name]
    use(scale)
    for form in (scale.resnet, scale.vit):
        with torch.device("meta"):
            networks.build(networks.parse({**form, "num_classes": 10}), 0)
    for recipe in (*scale.recipes.values(), scale.vit_recipe):
        Recipe.model_validate(recipe)
    for method in METHODS:
        parse(options_of("class", method))
    assert SCENARIOS["random"].forget_set == f"random{scale.records // 10}-1"


def test_the_full_scale_is_the_papers(use):
    use(FULL)
    assert FULL.resnet["stem"] == "cifar"
    recipe = Recipe.model_validate(FULL.recipes["memorised"])
    sgd = recipe.optimizer
    assert (FULL.records, recipe.epochs, recipe.batch_size) == (50_000, 182, 256)
    assert (sgd.lr, sgd.momentum, sgd.nesterov, sgd.weight_decay) == (0.1, 0.9, False, 5e-4)
    assert {*study.forget_sets("regularised")} > {
        "class3",
        "random5000-1",
        "random500-4",
        "random50-6",
    }


@pytest.fixture
def tiny(use, monkeypatch, tmp_path):
    """Have ``--scale full`` mean a few tiny images and networks, and all results lie apart."""
    use(SMALL)
    recipe = {"epochs": 1, "batch_size": 64, "optimizer": {"name": "sgd", "lr": 0.1}}
    scale = replace(
        FULL,
        records=MOST,
        resnet=CONVNET,
        vit=VIT,
        recipes={"memorised": recipe},
        vit_recipe=recipe,
        short=1,
    )

    def records(data, name, count, seed):
        count = min(count, MOST)
        prepared = Preprocessing(
            height=SIDE, width=SIDE, channels=1, scale=1 / 255, mean=[0.5], std=[0.5]
        )
        numbers = torch.arange(count)
        draw = torch.Generator().manual_seed(len(name))
        images = torch.randint(0, 256, (count, 1, SIDE, SIDE), generator=draw, dtype=torch.uint8)
        return Records(images=images, labels=numbers % 10, rows=numbers, preprocessing=prepared)

    monkeypatch.setitem(SCALES, "full", scale)
    monkeypatch.setattr(cifar, "records", records)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for module in (hardware, tables, papers):
        monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    sets = {"class3": {"label": 3}, "random40-1": {"count": 40, "seed": 1}}
    monkeypatch.setattr(study, "forget_sets", lambda _: sets)
    for name in (cifar.TRAIN, cifar.TEST):
        (tmp_path / name).touch()

    def run(module, *options):
        monkeypatch.setattr(sys, "argv", ["", "--scale", "full", "--data", str(tmp_path), *options])
        module.main()
        return {
            str(path.relative_to(tmp_path / "results"))
            for path in (tmp_path / "results").rglob("*.*")
        }

    return run


def test_oracles_and_gates_run_at_full_scale(tiny):
    made = tiny(oracles, "--seeds", "1")
    assert made == {f"oracles-full/memorised-{name}-s101.npz" for name in ("class3", "random40-1")}
    cells = {
        f"gates-full/memorised-{name}{ending}.json"
        for name in ("class3", "random40-1")
        for ending in ("", "-exact")
    }
    pages = {"gates-full.json", "gates-full.md", "parents-full/memorised.json"}
    assert tiny(gates) == made | cells | pages


def test_papers_run_at_full_scale(tiny, monkeypatch):
    jobs = [Job("random", RETRAIN, 1), Job("random", "FT", 1), Job("vit-class", "SSD", 1)]
    jobs.append(Job("transfer", "l1-sparse", 1))
    monkeypatch.setattr(transfers, "TARGET_RECORDS", 50)
    monkeypatch.setattr(papers, "jobs", lambda *_: jobs)
    names = ("random-retrain", "random-ft", "vit-class-ssd", "transfer-l1-sparse")
    cells = {f"papers-full/{name}-s1.json" for name in names}
    cells.add("oracles-full/memorised-random40-1-s101.npz")
    pictures = {f"papers-full-{name}.png" for name in ("sparsity", "fine-tuning", "applications")}
    assert tiny(papers) == cells | pictures | {"papers-full.md"}


def test_a_regime_that_a_scale_lacks_is_refused(tiny, capsys):
    with pytest.raises(SystemExit):
        tiny(gates, "--regime", "shipped")
    assert "no regime shipped" in capsys.readouterr().err
