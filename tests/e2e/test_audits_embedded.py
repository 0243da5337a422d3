"""Every audit on demand through the whole service, with all that one can compare with.

Oracles never saw what a version has forgotten; reference models know what it has not. So each
audit is run twice: on a class that is forgotten, and on records of a request that was not met.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from core.audits import audits
from core.backdoor import Trigger
from tests.e2e import story
from tests.e2e.client import Client, Json
from tests.e2e.stack import Embedded

pytestmark = pytest.mark.slow
OPTIONS: dict[str, Json] = {
    "backdoor": {"trigger": Trigger(target=7, size=2, value=255, offset=0).model_dump()}
}


@dataclass(frozen=True)
class Place:
    """Where audits are run."""

    client: Client
    model: str
    unmet: str
    """Id of a request whose records every version was trained on."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, home: Path) -> Iterator[Place]:
    """A version that has forgotten a class, two oracles, a reference bank, and an unmet request."""
    stack = Embedded(tmp_path_factory.mktemp("audits"))
    stack.start()
    try:
        with Client(stack.url, stack.key) as client:
            ids, model = story.register(client, home)
            story.forget_class(client, model)
            for seed in (1, 2):
                _result(client, f"/models/{model}/versions/2/oracle", {"seed": seed})
            _result(client, f"/models/{model}/reference-bank", {"models": 4})
            yield Place(client, model, _unmet(client, model, ids[:40]))
    finally:
        assert stack.stop() == {"serve": 0}


@pytest.mark.parametrize("name", [entry.name for entry in audits])
def test_it_measures_where_it_can_and_is_refused_elsewhere(name: str, place: Place) -> None:
    needs = audits[name].config.needs
    forgotten = _audit(place, name, "reference_bank_missing" if "references" in needs else None)
    unmet = _audit(
        place, name, "oracle_missing" if "oracle" in needs else None, request=place.unmet
    )
    measured = [finding for finding in forgotten + unmet if finding["value"] is not None]
    assert measured, forgotten + unmet


def _audit(place: Place, name: str, refusal: str | None, **fields: str) -> list[Json]:
    """Run one audit; return what it found, nothing where it is refused with this code."""
    path = f"/models/{place.model}/versions/2/audits"
    body = {"audits": [{"name": name, **OPTIONS.get(name, {})}], **fields}
    if refusal is not None:
        answer = place.client.http.post(path, json=body)
        assert (answer.status_code, answer.json().get("code")) == (409, refusal), answer.text
        return []
    found: list[Json] = _result(place.client, path, body)["findings"]
    own = [finding for finding in found if finding["audit"] == name]
    assert own, found
    # Of an unmet request there is no version from before, and that is said beside.
    others = {finding["audit"] for finding in found} - {name}
    assert others == ({"before"} if fields else set()), found
    return own


def _result(client: Client, path: str, body: Json) -> Json:
    """Have something done; return what came of it."""
    answer = client.http.post(path, json=body)
    assert answer.status_code == 202, answer.text
    job = client.job(answer.json()["id"])
    assert job["status"] == "succeeded", job
    result: Json = job["result"]
    return result


def _unmet(client: Client, model: str, ids: list[str]) -> str:
    """Ask to have records forgotten by a rung that so few of them cannot have published."""
    forget = {"type": "record_ids", "record_ids": ids}
    request = client.forget("unmet", model, forget, unlearner={"name": "fine_tune"})
    assert client.job(request["job_id"])["status"] == "failed"
    assert client.get(f"/unlearn-requests/{request['id']}")["status"] == "needs_attention"
    return str(request["id"])
