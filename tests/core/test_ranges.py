"""Ranges and choices of options, as the specification of the methods has them."""

import pytest

from core.pruners import pruners
from core.unlearners import unlearners

RANGES = {
    "fine_tune": {"epochs": "[1, 100]", "lr": "(0, 1]"},
    "gradient_ascent": {"epochs": "[1, 20]", "clip": "(0, 100]"},
    "fisher_forgetting": {"alpha": "[0, 0.001]"},
    "influence": {"alpha": "(0, 50]"},
    "l1_sparse": {"gamma": "[0, 1]"},
    "ssd": {"alpha": "(0, 10000]", "lam": "[0, 10]"},
    "ice_ft": {"alpha": "[0, 10]"},
    "kl_ft": {"alpha": "[0, 10]"},
    "rbm": {"quantile": "(0, 1)"},
    "ungrad": {"eps": "[0, 10]"},
    "eupmu": {"eps": "[0, 10]"},
    "salun": {"top_fraction": "(0, 1]"},
    "omp": {"sparsity": "[0, 0.999]"},
    "synflow": {"sparsity": "[0, 0.999]"},
}
CHOICES = {
    "random_label": {"form": {"union", "two_pass"}},
    "fisher_forgetting": {"estimator": {"model", "sampled"}},
    "influence": {"solver": {"cg", "woodbury"}},
    "l1_sparse": {"schedule": {"constant", "growing", "decay"}, "scope": {"weights", "all"}},
    "ssd": {"estimator": {"batch", "persample", "mas"}},
    "kl_ft": {"target": {"onehot", "uniform_wrong"}},
    "rbm": {"variant": {"erase", "update"}, "saliency": {"absgrad", "fisher"}},
    "ungrad": {"forget_loss": {"random_label", "ascent_bounded", "uniform"}},
    "eupmu": {
        "forget_loss": {"random_label", "ascent_bounded", "uniform"},
        "dual_opt": {"plain", "adam"},
        "scale": {"none", "log"},
    },
}
DEFAULTS = {
    "fine_tune": {"schedule": "constant"},
    "gradient_ascent": {"clip": 1.0, "bounded": True},
    "random_label": {"epochs": 5, "exclude_true": True, "redraw": False},
    "fisher_forgetting": {"alpha": 1e-8},
    "influence": {
        "alpha": 1.0,
        "damping": 1e-2,
        "cg_iters": 30,
        "samples": 1000,
        "step_cap": 0.1,
    },
    "l1_sparse": {"gamma": 5e-4, "schedule": "decay", "prox": False},
    "ssd": {"lam": 1.0, "max_utility_drop": 0.01, "growth": 1.1},
    "ice_ft": {"alpha": 0.1},
    "kl_ft": {"alpha": 0.1},
    "rbm": {"quantile": 0.5},
    "ungrad": {"eps": 0.0},
    "eupmu": {"lambda0": 0.0},
    "salun": {"top_fraction": 0.5},
    "neggrad_plus": {"alpha": 0.95},
    "scrub": {"max_epochs": 3, "temperature": 2.0},
    "msg": {"init_rate": 0.3},
}


def options(name):
    found = unlearners if name in unlearners else pruners
    return found[name].config.model_json_schema()["properties"]


def interval(option):
    [number] = [
        each for each in option.get("anyOf", [option]) if each["type"] in ("integer", "number")
    ]
    low = f"[{number['minimum']:g}" if "minimum" in number else f"({number['exclusiveMinimum']:g}"
    high = f"{number['maximum']:g}]" if "maximum" in number else f"{number['exclusiveMaximum']:g})"
    return f"{low}, {high}"


@pytest.mark.parametrize("name", RANGES)
def test_numbers_are_bounded_as_specified(name):
    found = {option: interval(options(name)[option]) for option in RANGES[name]}
    assert found == RANGES[name]


@pytest.mark.parametrize("name", CHOICES)
def test_every_specified_choice_is_one(name):
    for option, choices in CHOICES[name].items():
        assert choices <= set(options(name)[option]["enum"])


@pytest.mark.parametrize("name", DEFAULTS)
def test_what_is_left_out_is_as_specified(name):
    found = {option: options(name)[option]["default"] for option in DEFAULTS[name]}
    assert found == DEFAULTS[name]
