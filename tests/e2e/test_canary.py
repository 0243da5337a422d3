"""Canaries: a token in every personal field, the whole story with failures, and then a search.

Records are named by ids that callers choose, so the table of records, and what shows a request to
its own tenant, may hold those; nothing may hold a subject.
"""

from __future__ import annotations

import base64
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis

from tests.chaos import world
from tests.e2e.client import Client, Json
from tests.e2e.collector import Collector, attributes, collecting
from tests.e2e.stack import Distributed, Embedded, Stack

pytestmark = pytest.mark.slow

RECORD, SUBJECT = "canaryrecord", "canarysubject"
FILE, TICKET, VALUE = "canaryfile", "canaryticket", "canaryvalue"
KEY, CALL = "canarykey", "canarycall"
# As tus sends it: in base64, of a length that leaves nothing of a neighbour in it.
UPLOAD = base64.b64encode(b"canaryuploaded").decode().rstrip("=")[:18]
TOKENS = (RECORD, SUBJECT, FILE, TICKET, VALUE, KEY, CALL, UPLOAD)
NUM = world.NUM_RECORDS


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as made:
        yield made


@pytest.fixture(
    params=[
        "embedded",
        pytest.param("distributed", marks=[pytest.mark.postgres, pytest.mark.redis]),
    ]
)
def stack(request: pytest.FixtureRequest, tmp_path: Path, collector: Collector) -> Iterator[Stack]:
    watched = {"otlp_endpoint": collector.url, "log_format": "json", "log_level": "debug"}
    made: Embedded | Distributed
    if request.param == "embedded":
        made = Embedded(tmp_path, **watched)
    else:
        urls = [request.getfixturevalue(name) for name in ("postgres_url", "redis_url")]
        made = Distributed(tmp_path, *urls, retry_backoff_seconds="[0]", **watched)
    made.start()
    yield made
    made.stop()


class Recorder:
    """Keeps the body of every answer that is not a success."""

    def __init__(self, client: Client) -> None:
        self.refusals: list[str] = []
        client.http.event_hooks["response"] = [self._keep]

    def _keep(self, answer: object) -> None:
        if answer.status_code >= 400:  # type: ignore[attr-defined]
            answer.read()  # type: ignore[attr-defined]
            self.refusals.append(answer.text)  # type: ignore[attr-defined]


def dataset(path: Path) -> list[str]:
    """Write the tiny dataset with canaries for ids and subjects; return its training ids."""
    world.write_dataset(path)
    table = pq.read_table(path)
    ids = [f"{RECORD}-{row}" for row in range(len(table))]
    subjects = [f"{SUBJECT}-{row // 4}@example.org" for row in range(len(table))]
    for name, values in (("id", ids), ("subject", subjects)):
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    pq.write_table(table, path)
    return ids[:NUM]


def broken(path: Path, source: Path) -> None:
    """Write a dataset that is refused for what a cell holds."""
    table = pq.read_table(source)
    labels = pa.array([f"{VALUE}-{row}" for row in range(len(table))])
    pq.write_table(table.set_column(1, "label", labels), path)


def story(client: Client, folder: Path) -> tuple[str, str]:
    """Do everything once, and much of it wrong; return the model and a job that was done."""
    data, weights = folder / f"{FILE}.parquet", folder / f"{FILE}.safetensors"
    ids = dataset(data)
    world.train(weights, world.recipe(3))
    broken(folder / f"{FILE}-broken.parquet", data)
    bad = client.upload("/datasets", folder / f"{FILE}-broken.parquet", {"name": "broken"})["id"]
    good = client.upload("/datasets", data, {"name": "tiny", "metadata": {"ticket": TICKET}})["id"]
    for dataset_id, status in ((bad, "rejected"), (good, "ready")):
        found = client.wait(f"/datasets/{dataset_id}", "status", "ready", "rejected")
        assert found["status"] == status, found
    model = client.upload("/models", weights, metadata(good))["id"]
    version = client.wait(f"/models/{model}/versions/1", "status", "ready", "rejected")
    assert version["status"] == "ready", version
    mistakes(client, model)
    subject = {"type": "subject", "subject_ref": f"{SUBJECT}-1@example.org"}
    more = {"policy": "exact", "metadata": {"ticket": f"{TICKET}-1"}}
    client.http.headers["X-Request-Id"] = CALL
    asked = client.forget(f"{KEY} one", model, subject, **more)
    del client.http.headers["X-Request-Id"]
    assert client.forget(f"{KEY} one", model, subject, **more)["id"] == asked["id"]
    done = client.job(asked["job_id"])
    assert done["status"] == "succeeded", done
    # Nothing can be published from one epoch at this rate of loss: the ladder is exhausted.
    chosen = {"type": "record_ids", "record_ids": ids[100:110]}
    hopeless = {"unlearner": {"name": "fine_tune", "epochs": 1}, "policy": "strict"}
    failed = client.job(client.forget(f"{KEY} two", model, chosen, **hopeless)["job_id"])
    assert failed["status"] == "failed", failed
    return model, done["id"]


def metadata(dataset_id: str) -> Json:
    return {
        "name": "m",
        "architecture": world.ARCHITECTURE,
        "preprocessing": world.PREPROCESSING,
        "recipe": world.recipe(2),
        "dataset": dataset_id,
        "holdout": dataset_id,
        "metadata": {"ticket": TICKET},
    }


def mistakes(client: Client, model: str) -> None:
    """Send what is refused, with canaries in it."""
    wrong = {"model": model, "forget": {"type": "record_ids", "record_ids": [f"{RECORD}-x"]}}
    key = {"Idempotency-Key": "mistake"}
    assert client.http.post("/unlearn-requests", json=wrong, headers=key).status_code == 422
    body = {"model": model, "forget": {"type": "subject", "subject_ref": [SUBJECT]}}
    assert client.http.post("/unlearn-requests", json=body, headers=key).status_code == 422
    text = f'{{"forget": "{SUBJECT}'
    head = {**key, "Content-Type": "application/json"}
    assert client.http.post("/unlearn-requests", content=text, headers=head).status_code == 400
    asked = client.http.get("/unlearn-requests", params={"subject": SUBJECT})
    assert asked.status_code == 400
    assert client.http.get("/models", headers={"Authorization": SUBJECT}).status_code == 401


def unfinished(client: Client) -> str:
    """Announce a file with a name in its metadata; return the path of the upload."""
    named = {"Upload-Metadata": f"filename {base64.b64encode(b'canaryuploaded').decode()}"}
    head = {"Tus-Resumable": "1.0.0", "Upload-Length": "9", "Idempotency-Key": KEY, **named}
    made = client.http.post("/uploads", headers=head)
    assert made.status_code == 201, made.text
    path = str(made.headers["Location"])
    shown = client.http.head(path, headers={"Tus-Resumable": "1.0.0"})
    assert shown.headers["Upload-Metadata"] == named["Upload-Metadata"]
    return path


def logged(stack: Stack) -> str:
    return "".join(path.read_text() for path in stack.folder.glob("*.log"))


def dump(stack: Stack) -> dict[str, str]:
    """Rows of the database by table, as text."""
    url = str(stack._settings.get("database_url", ""))
    if not url:
        connection: sqlite3.Connection | psycopg.Connection = sqlite3.connect(
            stack.data_dir / "lethe.db"
        )
        names = "select name from sqlite_master where type = 'table'"
    else:
        connection = psycopg.connect(url.replace("+psycopg", ""))
        names = "select tablename from pg_tables where schemaname = 'public'"
    try:
        tables = [row[0] for row in connection.execute(names).fetchall()]
        return {
            name: str(connection.execute(f"select * from {name}").fetchall()) for name in tables
        }
    finally:
        connection.close()


def in_redis(stack: Stack) -> str:
    url = str(stack._settings.get("broker_url", ""))
    if not url:
        return ""
    with redis.Redis.from_url(url) as client:
        return str([(key, client.dump(key)) for key in client.scan_iter("*")])


def assert_clean(place: str, text: str, *allowed: str) -> None:
    hits = [token for token in TOKENS if token in text and token not in allowed]
    assert not hits, f"{place}: {hits} in ...{text[max(0, text.index(hits[0]) - 300) :][:600]}"


def test_no_canary_leaves_its_place(stack: Stack, collector: Collector, tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    with Client(stack.url, stack.key) as client:  # type: ignore[attr-defined]  # both have one
        recorder = Recorder(client)
        model, job_id = story(client, files)
        open_upload = unfinished(client)
        # Until it ends an upload tells its client's own words, as tus wants it.
        assert [name for name, rows in dump(stack).items() if UPLOAD in rows] == ["uploads"]
        ended = client.http.delete(open_upload, headers={"Tus-Resumable": "1.0.0"})
        assert ended.status_code == 204
        metrics = client.http.get("/metrics").text
    in_use = in_redis(stack)
    stack.stop()
    assert len(recorder.refusals) == 5
    for refusal in recorder.refusals:
        # Missing record ids are told to whoever sent them.
        is_missing = json.loads(refusal)["code"] == "records_not_found"
        assert_clean("refusal", refusal, *([RECORD] if is_missing else []))
    assert "lethe_failures_total" in metrics
    assert_clean("metrics", metrics)
    # A call's id is chosen by its caller, to be found again in logs, traces and what it made.
    assert_clean("logs", logged(stack), CALL)
    assert_clean("traces", collector.text, CALL)
    assert_clean("redis", in_use)
    assert_clean("blob names", "\n".join(map(str, stack.data_dir.rglob("*"))))
    for table, rows in dump(stack).items():
        kept = {
            "records": [RECORD],
            "jobs": [CALL],
            "unlearn_requests": [TICKET, CALL],
            **{name: [TICKET] for name in ("idempotency_keys", "datasets", "models")},
        }
        assert_clean(table, rows, *kept.get(table, []))
    for file in stack.data_dir.rglob("*"):
        if file.is_file() and not file.name.startswith("lethe.db"):
            assert_clean(str(file), file.read_bytes().decode("latin-1"), RECORD)
    assert model in dump(stack)["models"]
    check_lines(logged(stack), job_id)
    check_traces(collector, job_id)


def check_lines(text: str, job_id: str) -> None:
    """Every line of the job carries its id and the call that made it."""
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    own = [line for line in lines if line.get("job_id") == job_id and "epoch" in line]
    assert [line["event"] for line in own][:: len(own) - 1] == ["job_started", "job_ended"]
    assert own[-1]["status"] == "succeeded"
    (call,) = {line["request_id"] for line in own}
    made = [line for line in lines if line["event"] == "call" and line.get("request_id") == call]
    assert [(line["method"], line["route"]) for line in made] == [("POST", "/unlearn-requests")]


def check_traces(collector: Collector, job_id: str) -> None:
    """The job's span links to the call that made it, and its phases are its children."""
    jobs = [span for span in collector.spans if attributes(span).get("lethe.job_id") == job_id]
    (job,) = [span for span in jobs if span.name == "job unlearn"]
    assert attributes(job)["lethe.status"] == "succeeded"
    (link,) = job.links
    (call,) = [span for span in collector.spans if span.span_id == link.span_id]
    assert call.name == "POST /unlearn-requests"
    assert call.trace_id == link.trace_id != job.trace_id
    phases = [span for span in collector.spans if span.parent_span_id == job.span_id]
    assert "phase unlearning" in {span.name for span in phases}
    assert "retrain" in {attributes(span).get("lethe.method") for span in phases}
