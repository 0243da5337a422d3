"""Unlearners asked for by name: every bound of every option, and every need, at the door."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.api import fit
from app.api.variants import methods
from app.store import tables
from app.store.session import reading, transaction
from core import networks
from core.registry import Entry
from core.unlearners import UnlearnerOptions, unlearners
from tests.worlds import write_checkpoint

from .test_access_matrix import RANDOM
from .world import Tenant, assert_problem

NAMES = unlearners.names()
NOWHERE = f"mdl_{RANDOM}"
"""Options are looked at before the model is."""

DEEPEST = 2
Violation = tuple[list[str], dict[str, Any]]
"""Steps to the wrong value, and the options that hold it."""


def violations(
    schema: dict[str, Any], whole: dict[str, Any], depth: int = 0
) -> Iterator[Violation]:
    """Break every numeric bound of a schema, once each."""
    fixed = {
        name: inner["const"]
        for name, inner in schema.get("properties", {}).items()
        if "const" in inner
    }
    for name, inner in schema.get("properties", {}).items():
        for option in alternatives(inner, whole):
            for value in beyond(option):
                yield [name], {**fixed, name: value}
            for value in beyond(option.get("items", {})) if option.get("type") == "array" else ():
                yield [name, "0"], {**fixed, name: [value] * option.get("minItems", 1)}
            if depth < DEEPEST and "properties" in option:
                for steps, value in violations(option, whole, depth + 1):
                    yield [name, *steps], {**fixed, name: value}


def alternatives(schema: dict[str, Any], whole: dict[str, Any]) -> list[dict[str, Any]]:
    """The schemas that a property may take, references followed."""
    if "$ref" in schema:
        return alternatives(whole["$defs"][schema["$ref"].rpartition("/")[2]], whole)
    inner = [*schema.get("anyOf", []), *schema.get("oneOf", [])]
    return [found for each in inner for found in alternatives(each, whole)] or [schema]


def beyond(schema: dict[str, Any]) -> list[float]:
    """A value beyond each bound of a number."""
    if schema.get("type") not in ("integer", "number"):
        return []
    found = [schema[bound] for bound in ("exclusiveMinimum", "exclusiveMaximum") if bound in schema]
    found += [schema["minimum"] - 1] if "minimum" in schema else []
    return found + ([schema["maximum"] + 1] if "maximum" in schema else [])


def bounds_of(name: str) -> list[Violation]:
    schema = unlearners[name].config.model_json_schema()
    return [*violations(schema, schema)]


@pytest.mark.parametrize("name", NAMES)
def test_every_bound_is_refused_by_name(tenant: Tenant, name: str) -> None:
    for steps, options in bounds_of(name):
        answer = tenant.forget(NOWHERE, unlearner={**options, "name": name})
        problem = assert_problem(answer, 422, "validation_failed")
        pointers = [error["pointer"] for error in problem["errors"]]
        assert "/".join(["/unlearner", *steps]) in pointers, (options, problem)


def test_bounds_were_found() -> None:
    assert sum(len(bounds_of(name)) for name in NAMES) > 2 * len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_number_is_bounded(name: str) -> None:
    schema = unlearners[name].config.model_json_schema()
    for field, inner in schema["properties"].items():
        for option in alternatives(inner, schema):
            if option.get("type") in ("integer", "number") and "const" not in option:
                assert len(beyond(option)) == 2, (field, option)


@pytest.mark.parametrize("name", NAMES)
def test_unknown_fields_are_refused_by_name(tenant: Tenant, name: str) -> None:
    answer = tenant.forget(NOWHERE, unlearner={"name": name, "colour": 1})
    problem = assert_problem(answer, 422, "unknown_field")
    assert [error["pointer"] for error in problem["errors"]] == ["/unlearner/colour"]


@pytest.mark.parametrize("value", ["5", True, 5.5])
def test_numbers_are_not_made_of_other_things(tenant: Tenant, value: object) -> None:
    answer = tenant.forget(NOWHERE, unlearner={"name": "fine_tune", "epochs": value})
    problem = assert_problem(answer, 422, "validation_failed")
    assert [error["pointer"] for error in problem["errors"]] == ["/unlearner/epochs"]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"name": "ssd", "alpha": 10}, "alpha"),
        ({"name": "ssd", "alpha": 10, "estimator": "mas"}, "alpha"),
        ({"name": "ssd", "estimator": "batch", "selection": "alpha"}, "selection"),
        (
            {"name": "ssd", "alpha": 10, "estimator": "batch", "selection": "guarded"},
            "selection",
        ),
        ({"name": "l1_sparse", "epochs": 3, "no_l1_epochs": 3}, "no_l1_epochs"),
        ({"name": "eupmu", "scale": "log"}, "scale"),
        ({"name": "prune_first", "prune": {"name": "zeros"}, "then": {"name": "retrain"}}, "prune"),
    ],
)
def test_options_that_do_not_go_together_are_named(
    tenant: Tenant, options: dict[str, Any], field: str
) -> None:
    answer = tenant.forget(NOWHERE, unlearner=options)
    problem = assert_problem(answer, 422, "validation_failed")
    assert [error["pointer"] for error in problem["errors"]] == [f"/unlearner/{field}"]


@pytest.mark.parametrize("name", NAMES)
def test_defaults_are_accepted_and_filled_in(name: str) -> None:
    made = unlearners.parse({"name": name}, strict=True).model_dump(mode="json")
    assert (
        unlearners.parse(json.loads(json.dumps(made)), strict=True).model_dump(mode="json") == made
    )


@pytest.fixture
def demanding(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make an unlearner called ``delete`` that has these needs."""

    def demand(**facts: Any) -> dict[str, Any]:
        facts = {"exact": False, "needs": (), "networks": (), **facts}
        config = type("Demanding", (unlearners["delete"].config,), facts)
        entry: Entry[Any] = Entry("delete", "For a test.", config, unlearners["delete"].run)
        monkeypatch.setitem(unlearners._entries, "delete", entry)
        assert methods()["delete"].needs == facts["needs"]
        return {"name": "delete"}

    return demand


LACKING: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "recipe": ({"needs": ("recipe",)}, {"recipe": None}, "/unlearner"),
    "holdout": ({"needs": ("holdout",)}, {"holdout": None}, "/unlearner"),
    "class": ({"needs": ("class",)}, {}, "/forget"),
    "images": ({"needs": ("images",)}, {}, "/unlearner"),
    "network": ({"networks": ("vit", "resnet20")}, {}, "/unlearner"),
}


@pytest.mark.parametrize("need", LACKING)
def test_a_missing_need_is_refused_at_the_door(tenant: Tenant, demanding: Any, need: str) -> None:
    facts, model, pointer = LACKING[need]
    unlearner = demanding(**facts)
    answer = tenant.forget(tenant.ready_model(**model), unlearner=unlearner)
    problem = assert_problem(answer, 422, "algorithm_not_applicable")
    assert problem["missing"] == need
    assert [error["pointer"] for error in problem["errors"]] == [pointer]
    assert tenant.count(tables.Request) == 0


def test_what_is_there_is_not_missed(tenant: Tenant, demanding: Any) -> None:
    needs = ("retain", "recipe", "holdout", "class")
    unlearner = demanding(needs=needs, networks=("linear",))
    model_id = tenant.ready_model()
    answer = tenant.forget(model_id, {"type": "class", "class": 1}, unlearner=unlearner)
    assert answer.status_code == 202, answer.text


def test_an_empty_holdout_split_is_no_holdout(tenant: Tenant) -> None:
    model_id = tenant.ready_model()
    with transaction() as session:
        model = session.get_one(tables.Model, (tenant.id, model_id))
        session.get_one(tables.Dataset, (tenant.id, model.dataset_id)).num_holdout = 0
    answer = tenant.forget(model_id, unlearner={"name": "fine_tune"})
    assert assert_problem(answer, 422, "algorithm_not_applicable")["missing"] == "holdout"


@pytest.mark.parametrize(
    "wanted",
    [
        {"name": "fine_tune", "keep": 0.5},
        {"name": "prune_first", "then": {"name": "fine_tune", "keep": 0.5}},
    ],
    ids=lambda wanted: wanted["name"],
)
def test_other_weights_do_not_go_with_frozen_batch_norm(tenant: Tenant, wanted: Any) -> None:
    model_id = tenant.ready_model()
    for has_batchnorm, bn_policy, status in (
        (True, "frozen", 422),
        (True, "recalibrate", 202),
        (False, "frozen", 202),
        (None, "frozen", 202),
    ):
        with transaction() as session:
            session.get_one(tables.Model, (tenant.id, model_id)).has_batchnorm = has_batchnorm
        answer = tenant.forget(model_id, unlearner=wanted, bn_policy=bn_policy)
        assert answer.status_code == status, answer.text
        if status == 422:
            problem = assert_problem(answer, 422, "algorithm_not_applicable")
            assert problem["errors"][0]["pointer"] == "/bn_policy"
            assert "missing" not in problem


def test_batch_norm_is_noted_at_the_door(tenant: Tenant, tmp_path: Path) -> None:
    model_id = tenant.ready_model()
    with reading() as session:
        assert session.get_one(tables.Model, (tenant.id, model_id)).has_batchnorm is False
    given = {"name": "resnet20", "num_classes": 2}
    path = write_checkpoint(networks.build(networks.parse(given)), tmp_path / "weights")
    assert fit.check(path, given).has_batchnorm


@pytest.mark.parametrize("entry", [*unlearners], ids=NAMES)
def test_needs_are_facts_of_the_class(entry: Entry[Any]) -> None:
    assert issubclass(entry.config, UnlearnerOptions)
    assert isinstance(entry.config.needs, tuple)
    assert isinstance(entry.config.networks, tuple)
