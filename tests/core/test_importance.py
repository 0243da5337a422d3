"""Importance: every closed form against one gradient per record, and what is stored with it."""

import copy
import dataclasses

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from core import importance, persample, weights
from core.data import Records
from core.errors import InvalidInput, MissingEvidence
from core.smallmaps import dense_small_maps
from tests.worlds import CPU


def some(count, *shape, classes=3, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return Records(
        images=torch.randn(count, *shape, generator=draw),
        labels=torch.randint(0, classes, (count,), generator=draw),
        rows=torch.arange(count),
    )


def label_loss(logits, labels):
    return [F.cross_entropy(logits, labels, reduction="none")]


def forward(model, x):
    return model(x)


def squares(form, model, x, y):
    account = {}

    def add(parameter, values, where=()):
        key = next(name for name, p in model.named_parameters() if p is parameter)
        account.setdefault(key, torch.zeros_like(parameter))[where] += values

    if form == "closed":
        persample.add_closed_form(forward, model, x, y, losses=label_loss, add=add)
    elif form == "general":
        persample.add_general(model, x, y, losses=label_loss, add=add)
    else:
        for i in range(len(x)):
            loss = F.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
            for p, g in zip(
                model.parameters(), torch.autograd.grad(loss, model.parameters()), strict=True
            ):
                add(p, g.square())
    return account


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 3))

    def forward(self, x):
        return self.inner(x).mean((1, 2))


LAYERS = {
    "linear": (lambda: nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)), (5,)),
    "batch norm 1d": (
        lambda: nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3)),
        (5,),
    ),
    "tokens": (Tokens, (3, 2, 4)),
    "many positions": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3, 2, 1),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(64, 3),
        ),
        (3, 8, 8),
    ),
    "few positions": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Flatten(), nn.Linear(16, 3)),
        (3, 4, 4),
    ),
    "one position": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), nn.Flatten(), nn.Linear(4, 3)),
        (3, 1, 1),
    ),
    "dilated": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3, 1, 2, dilation=2), nn.Flatten(), nn.Linear(100, 3)
        ),
        (3, 5, 5),
    ),
    "grouped": (
        lambda: nn.Sequential(
            nn.Conv2d(4, 8, 3, 1, 1, groups=2), nn.GroupNorm(2, 8), nn.Flatten(), nn.Linear(72, 3)
        ),
        (4, 3, 3),
    ),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("form", ["closed", "general"])
def test_squares_equal_one_gradient_per_record(name, form):
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    model = make().double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    x, y = torch.randn(6, *shape, dtype=torch.float64), torch.randint(0, 3, (6,))
    assert persample.has_closed_form(model)
    expected = squares("reference", model, x, y)
    found = squares(form, model, x, y)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1"])
def test_closed_forms_cover_torchvision_networks(name):
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, num_classes=3).eval()
    x, y = torch.randn(2, 3, 64, 64), torch.tensor([0, 2])
    found, expected = (squares(form, model, x, y) for form in ("closed", "general"))
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-4 * float(value.max()))


@pytest.mark.parametrize(
    ("layer", "side"),
    [
        (nn.Conv2d(3, 4, 3, padding=1), 1),
        (nn.Conv2d(3, 4, 3, padding=1, bias=False), 2),
        (nn.Conv2d(3, 4, 3, stride=2, padding=1), 2),
        (nn.Conv2d(3, 4, 5, padding=2, dilation=2), 3),
        (nn.Conv2d(3, 4, (3, 5), padding=(1, 2)), 2),
        (nn.Conv2d(3, 4, 3, padding=1), 8),
        (nn.Conv2d(3, 4, 3, padding="same"), 2),
    ],
)
def test_dense_small_maps_give_the_same_values_and_gradients(layer, side):
    layer = layer.double()
    x = torch.randn(5, 3, side, side, dtype=torch.float64)
    x = nn.functional.pad(x, (1, 1, 1, 1)) if layer.dilation == (2, 2) else x
    expected = layer(x)
    gradients = torch.autograd.grad(expected.square().sum(), tuple(layer.parameters()))
    with dense_small_maps(layer):
        found = layer(x)
        again = torch.autograd.grad(found.square().sum(), tuple(layer.parameters()))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(again, gradients)
    assert "forward" not in vars(layer)


def test_a_small_map_is_not_convolved():
    layer = nn.Conv2d(3, 4, 3, padding=1)
    layer._conv_forward = None
    with dense_small_maps(layer):
        assert layer(torch.zeros(2, 3, 2, 2)).shape == (2, 4, 2, 2)


class ClassToken(nn.Module):
    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.randn(5))
        self.last = nn.Linear(5, 3)

    def forward(self, x):
        return self.last(x * self.token)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.shared, self.last = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.last(self.shared(self.shared(x).tanh()))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 5)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(x).tanh())[:, :3]


@pytest.mark.parametrize("make", [ClassToken, Twice, Tied])
def test_other_models_take_the_general_route(make):
    torch.manual_seed(0)
    model, records = make().eval(), some(20, 5)
    found = importance.estimate(model, records, "fisher_persample", batch_size=7, device=CPU)
    expected = squares("reference", model, records.images, records.labels)
    assert found.values.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found.values[key], value / 20, rtol=1e-4, atol=1e-7)


def test_an_overwritten_input_is_noticed():
    class Overwriting(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.last = (nn.Linear(5, 5) for _ in range(3))

        def forward(self, x):
            hidden = self.first(x)
            branch = self.second(hidden)
            return self.last(hidden.relu_() + branch)[:, :3]

    torch.manual_seed(0)
    model, records = Overwriting().eval(), some(6, 5)
    with pytest.raises(persample.Unsupported):
        squares("closed", model, records.images, records.labels)


def test_fisher_batch_is_the_square_of_the_batch_mean():
    torch.manual_seed(0)
    model, records = nn.Linear(5, 3).eval(), some(10, 5)
    found = importance.estimate(model, records, "fisher_batch", batch_size=6, device=CPU)
    expected = 0
    for part in (slice(0, 6), slice(6, 10)):
        loss = F.cross_entropy(model(records.images[part]), records.labels[part])
        expected = expected + torch.autograd.grad(loss, model.weight)[0].square() / 2
    torch.testing.assert_close(found.values["weight"], expected)


def test_mas_is_the_absolute_gradient_of_the_squared_norm_and_needs_no_labels():
    torch.manual_seed(0)
    model, records = nn.Linear(5, 3).eval(), some(10, 5)
    found = importance.estimate(model, records, "mas", batch_size=10, device=CPU)
    loss = model(records.images).square().sum(1).mean()
    expected = torch.autograd.grad(loss, model.weight)[0].abs()
    torch.testing.assert_close(found.values["weight"], expected)
    blind = dataclasses.replace(records, labels=torch.zeros(10, dtype=torch.int64))
    again = importance.estimate(model, blind, "mas", batch_size=10, device=CPU)
    assert torch.equal(again.values["weight"], found.values["weight"])


def test_fisher_model_takes_the_expectation_over_labels():
    torch.manual_seed(0)
    model, records = nn.Linear(5, 3).double().eval(), some(4, 5)
    x = records.images.double()
    p = model(x).softmax(1).detach()
    expected = torch.zeros(3, 5, dtype=torch.float64)
    for j in range(4):
        for c in range(3):
            residual = p[j] - F.one_hot(torch.tensor(c), 3)
            expected += p[j, c] * torch.outer(residual, x[j]).square() / 4
    model.float()
    found = importance.estimate(model, records, "fisher_model", batch_size=3, device=CPU)
    torch.testing.assert_close(found.values["weight"].double(), expected, rtol=1e-4, atol=1e-7)


def test_small_values_are_not_lost_among_large_ones():
    model, records = nn.Linear(1, 2, bias=False).eval(), some(2000, 1, classes=2)
    with torch.no_grad():
        model.weight.zero_()
    records.images[:] = 1e-3
    records.images[0] = 1e3
    found = importance.estimate(model, records, "fisher_persample", batch_size=1, device=CPU)
    expected = (0.25 * 1e6 + 1999 * 0.25 * 1e-6) / 2000
    assert found.values["weight"][0, 0].item() == pytest.approx(expected, rel=1e-7)


def test_the_model_is_left_as_it_was():
    model, records = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)), some(8, 5)
    model[0].weight.requires_grad_(False)
    before = weights.digest(model)
    found = importance.estimate(model, records, "fisher_batch", batch_size=4, device=CPU)
    assert weights.digest(model) == before == found.weights
    assert model.training
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True, True, True]
    assert all(p.grad is None for p in model.parameters())


def test_buffers_have_no_importance_and_tied_parameters_one():
    model = Tied()
    model.register_buffer("statistic", torch.ones(3))
    found = importance.estimate(model, some(4, 5), "fisher_batch", batch_size=4, device=CPU)
    assert set(found.values) == {"first.weight", "first.bias", "second.bias"}


def test_stored_importance_says_what_it_is(tmp_path):
    model, records = nn.Linear(5, 3), some(10, 5)
    made = importance.estimate(model, records, "mas", batch_size=4, device=CPU, seed=3)
    importance.save(made, tmp_path / "i.safetensors")
    read = importance.load(tmp_path / "i.safetensors")
    assert (read.estimator, read.n, read.batch_size) == ("mas", 10, 4)
    assert (read.data, read.weights) == (records.digest(), weights.digest(model))
    assert all(torch.equal(read.values[name], made.values[name]) for name in made.values)


def test_a_file_that_is_no_importance_is_refused(tmp_path):
    weights.save(nn.Linear(2, 2), tmp_path / "w.safetensors")
    (tmp_path / "x").write_bytes(b"nothing")
    for name in ("w.safetensors", "x"):
        with pytest.raises(InvalidInput):
            importance.load(tmp_path / name)


def test_no_records_no_importance():
    with pytest.raises(MissingEvidence):
        importance.estimate(
            nn.Linear(5, 3), some(0, 5), "fisher_persample", batch_size=4, device=CPU
        )


def test_bf16_is_taken_only_where_it_selects_the_same_weights():
    torch.manual_seed(0)
    model, records = nn.Sequential(nn.Linear(5, 512), nn.ReLU(), nn.Linear(512, 3)), some(200, 5)
    found = importance.estimate(
        model, records, "fisher_persample", batch_size=64, device=CPU, precision="auto"
    )
    half = importance.estimate(
        model, records, "fisher_persample", batch_size=64, device=CPU, precision="bf16"
    )
    assert found.precision == "fp32"
    assert half.precision == "bf16"
    assert not torch.equal(found.values["0.weight"], half.values["0.weight"])


def test_a_copy_made_on_dense_small_maps_has_weights_of_its_own():
    layer = nn.Conv2d(4, 4, 3, padding=1)
    x = torch.randn(2, 4, 1, 1)
    with dense_small_maps(layer):
        other = copy.deepcopy(layer)
        with torch.no_grad():
            layer.weight.zero_()
    torch.testing.assert_close(other(x), nn.Conv2d.forward(other, x))
    assert other(x).std() > 0


def test_dense_small_maps_may_be_nested_and_end():
    layer = nn.Conv2d(4, 4, 3, padding=1)
    with dense_small_maps(layer):
        with dense_small_maps(layer):
            pass
        assert "forward" in vars(layer)
    assert "forward" not in vars(layer)
