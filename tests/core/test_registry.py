"""The registry: file, function and config agree, and the expected names are there."""

from typing import Literal

import pytest
from pydantic import Field, ValidationError

from core.audits import audits
from core.errors import UnknownName
from core.pruners import pruners
from core.registry import Config, Registry
from core.unlearners import unlearners


class test_registryConfig(Config):
    """A variant for tests.

    More about it.
    """

    name: Literal["test_registry"] = "test_registry"
    strength: int = Field(1, ge=0, description="How much.")
    source = "nowhere"


def named(name, annotation):
    def run(config):
        return config

    run.__name__ = name
    run.__module__ = f"anywhere.{name}"
    run.__annotations__ = {"config": annotation}
    return run


def test_a_variant_is_found_by_its_name():
    registry = Registry("thing")
    run = registry(named("test_registry", test_registryConfig))
    entry = registry["test_registry"]
    assert (entry.run, entry.config) == (run, test_registryConfig)
    assert entry.summary == "A variant for tests."
    assert registry.parse({"name": "test_registry", "strength": 3}).strength == 3


def test_names_must_agree():
    with pytest.raises(TypeError, match="disagree"):
        Registry("thing")(named("other", test_registryConfig))


def test_the_last_argument_must_be_a_config():
    with pytest.raises(TypeError, match="must be a Config"):
        Registry("thing")(named("test_registry", int))


def test_a_name_is_taken_once():
    registry = Registry("thing")
    registry(named("test_registry", test_registryConfig))
    with pytest.raises(TypeError, match="twice"):
        registry(named("test_registry", test_registryConfig))


def test_every_field_is_described():
    class Silent(test_registryConfig):
        more: int = 0

    with pytest.raises(TypeError, match="more"):
        Registry("thing")(named("test_registry", Silent))


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UnknownName, match=r"fine_tune.*retrain.*ssd"):
        unlearners["forgetful"]


def test_a_misspelt_option_is_refused_by_name():
    with pytest.raises(ValidationError, match="epoch"):
        unlearners.parse({"name": "fine_tune", "epoch": 3})


def test_what_is_registered():
    assert unlearners.names() == [
        "bad_teacher",
        "ce_ft",
        "delete",
        "eupmu",
        "famo",
        "fine_tune",
        "fisher_forgetting",
        "gradient_ascent",
        "ice_ft",
        "influence",
        "kl_ft",
        "l1_sparse",
        "linear_weighting",
        "msg",
        "munba",
        "neggrad_plus",
        "pcgrad",
        "prune_first",
        "random_label",
        "rbm",
        "retrain",
        "ridge_head",
        "salun",
        "scrub",
        "sisa",
        "ssd",
        "tuned",
        "ungrad",
        "unsir",
    ]
    assert pruners.names() == ["imp", "omp", "synflow", "zeros"]
    assert audits.names() == [
        "accuracy",
        "avg_gap",
        "backdoor",
        "collateral",
        "duplicates",
        "equivalence",
        "linear_probe",
        "lira",
        "membership",
        "mia_efficacy",
        "oracle_distance",
        "perturbation",
        "prototype",
        "relearn_time",
        "rmia",
        "sanity",
        "two_version",
        "zrf",
    ]
