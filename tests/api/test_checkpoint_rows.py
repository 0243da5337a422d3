"""Bad input, rows C as far as they are seen at once, and the state of what waits for conversion."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from app.store import tables
from tests.core import checkpoints as made

from . import files
from .world import Tenant, assert_problem

REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "C14-torchscript": (made.torchscript, "torchscript_not_supported"),
    "C15-exported": (made.exported, "exported_program_not_supported"),
    "C16-package": (made.packaged, "torch_package_not_supported"),
    "C24-legacy": (
        lambda: made.saved(made.state(), _use_new_zipfile_serialization=False),
        "legacy_torch_format",
    ),
}


@pytest.mark.parametrize("row", REFUSED)
def test_programs_and_old_formats(tenant: Tenant, row: str) -> None:
    make, code = REFUSED[row]
    assert_problem(tenant.post_model(make()), 415, code, scratch=tenant.scratch)
    assert tenant.count(tables.Model) == 0


@pytest.mark.parametrize(
    ("options", "content"),
    [
        ({"format": "safetensors"}, made.archive()),
        ({"format": "pytorch"}, files.weights()),
        ({"filename": "m.safetensors"}, made.bare(1)),
    ],
)
def test_B28_something_else_than_was_said(
    tenant: Tenant, options: dict[str, str], content: bytes
) -> None:
    answer = tenant.post_model(content, **options)
    assert_problem(answer, 422, "media_type_mismatch", scratch=tenant.scratch)
    assert tenant.count(tables.Model) == 0


@pytest.mark.parametrize("content", [made.saved(made.state()), made.bare(1), b"PK\x03\x04"])
def test_what_has_to_be_converted_is_quarantined(tenant: Tenant, content: bytes) -> None:
    answer = tenant.post_model(content)
    assert answer.status_code == 201, answer.text
    version = answer.json()["latest_version"]
    assert version["status"] == "validating"
    assert version["num_parameters"] == 10
    assert version["upload"] == {
        "format": "pytorch",
        "digest": version["digest"],
        "size_bytes": len(content),
        "scan": "pending",
        "sandbox": None,
        "unwrapped": [],
        "prefix": "",
    }
    jobs = tenant.get(f"/jobs?model={answer.json()['id']}").json()["data"]
    assert [job["kind"] for job in jobs] == ["convert"]
    path = f"/models/{answer.json()['id']}/versions/1/checkpoint"
    assert_problem(tenant.get(path), 409, "version_not_ready")


def test_the_architecture_is_checked_at_once(tenant: Tenant) -> None:
    answer = tenant.post_model(made.archive(), architecture={"name": "nothing"})
    assert_problem(answer, 422, "architecture_unknown", scratch=tenant.scratch)


def test_safetensors_pass_at_once(tenant: Tenant) -> None:
    version = tenant.post_model().json()["latest_version"]
    assert (version["upload"]["format"], version["upload"]["scan"]) == ("safetensors", "passed")
