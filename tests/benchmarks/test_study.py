"""What the studies keep between runs."""

import pytest
import torch

from benchmarks import study
from core import networks
from core.data import Records
from core.recipe import Recipe

TINY = {"epochs": 1, "batch_size": 4, "optimizer": {"name": "sgd", "lr": 0.1}}


@pytest.fixture
def train_with(monkeypatch, tmp_path):
    """Return the weights of a regime's parent, a tiny network on eight records."""
    form = {"name": "mlp", "in_features": 2, "num_classes": 2, "hidden": [3]}
    monkeypatch.setattr(study, "architecture", lambda: networks.parse(form))
    torch.manual_seed(0)
    numbers = torch.arange(8)
    records = Records(images=torch.randn(8, 2), labels=numbers % 2, rows=numbers)

    def train(**recipe):
        chosen = Recipe.model_validate(TINY | recipe)
        world = study.World("tiny", records, records, records, chosen)
        monkeypatch.setattr(study, "world", lambda data, regime: world)
        return study.parent(tmp_path, "tiny", tmp_path / "kept").state_dict()

    return train


def equal(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_parent_is_kept_until_its_recipe_changes(train_with, tmp_path):
    first = train_with()
    [path] = (tmp_path / "kept").iterdir()
    stamp = path.stat().st_mtime_ns
    assert equal(train_with(), first)
    assert path.stat().st_mtime_ns == stamp
    assert not equal(train_with(epochs=2), first)
    assert path in (tmp_path / "kept").iterdir()
