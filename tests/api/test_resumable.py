"""Uploads in pieces: the protocol, its refusals, and what a finished one becomes."""

from __future__ import annotations

import base64
import errno
import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from httpx2 import Response
from sqlalchemy import update

from app.api import appending
from app.settings import Settings
from app.store import partial, session, tables
from app.store.blobs import blobs
from app.store.session import transaction

from . import files
from .world import Tenant, assert_problem

PIECE = {"Tus-Resumable": "1.0.0", "Content-Type": "application/offset+octet-stream"}


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def announce(tenant: Tenant, size: int, content: bytes | None = None, **headers: str) -> Response:
    """Create an upload; ``content`` comes along as its first bytes."""
    given = {"Tus-Resumable": "1.0.0", "Upload-Length": str(size)}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    if content is not None:
        given["Content-Type"] = PIECE["Content-Type"]
    return tenant.call("POST", "/uploads", content=content, headers=given)


def begin(tenant: Tenant, size: int, **headers: str) -> str:
    answer = announce(tenant, size, **headers)
    assert answer.status_code == 201, answer.text
    return str(answer.headers["location"])


def send(tenant: Tenant, path: str, offset: int, content: Any, **headers: str) -> Response:
    given = PIECE | {"Upload-Offset": str(offset)}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    return tenant.call("PATCH", path, content=content, headers=given)


def finished(tenant: Tenant, content: bytes) -> str:
    """Upload all of it; return the id."""
    path = begin(tenant, len(content))
    assert send(tenant, path, 0, content).status_code == 204
    return path.rpartition("/")[2]


def offset_of(tenant: Tenant, path: str) -> int:
    answer = tenant.call("HEAD", path, headers=PIECE)
    assert answer.status_code == 200
    return int(answer.headers["upload-offset"])


def kept() -> list[str]:
    """Names of the partial files."""
    return sorted(file.name for file in partial._root().glob("*/*"))


def row_of(tenant: Tenant, path: str) -> tables.Upload:
    with session.reading() as reader:
        return reader.get_one(tables.Upload, (tenant.id, path.rpartition("/")[2]))


def test_what_is_spoken(tenant: Tenant) -> None:
    answer = tenant.call("OPTIONS", "/uploads")
    assert answer.status_code == 204
    assert answer.headers["tus-version"] == answer.headers["tus-resumable"] == "1.0.0"
    assert answer.headers["tus-max-size"] == str(32 * 2**20)
    assert set(answer.headers["tus-extension"].split(",")) == {
        "creation",
        "creation-with-upload",
        "termination",
        "expiration",
        "checksum",
    }
    assert answer.headers["tus-checksum-algorithm"] == "sha1,sha256"


def test_a_file_in_three_pieces(tenant: Tenant) -> None:
    content = files.parquet()
    metadata = f"filename {b64(b'../../etc/passwd')},flag"
    path = begin(tenant, len(content), Upload_Metadata=metadata)
    assert tenant.get(path).json()["status"] == "created"
    for start, end in ((0, 100), (100, 101), (101, len(content))):
        answer = send(tenant, path, start, content[start:end])
        assert (answer.status_code, answer.headers["upload-offset"]) == (204, str(end))
        assert answer.headers["tus-resumable"] == "1.0.0"
        assert answer.headers["upload-expires"].endswith("GMT")
        if end == 101:
            assert tenant.get(path).json()["status"] == "receiving"
    head = tenant.call("HEAD", path, headers=PIECE)
    assert head.headers["upload-length"] == head.headers["upload-offset"] == str(len(content))
    assert head.headers["cache-control"] == "no-store"
    assert head.headers["upload-metadata"] == metadata
    found = tenant.get(path).json()
    digest = hashlib.sha256(content).hexdigest()
    assert (found["status"], found["digest"]) == ("received", f"sha256:{digest}")
    done = tenant.call("POST", f"{path}/complete", json={"sha256": digest}).json()
    assert done["status"] == "verified"
    assert tenant.call("POST", f"{path}/complete").json() == tenant.get(path).json()


def test_first_bytes_come_along(tenant: Tenant) -> None:
    answer = announce(tenant, 10, b"01234")
    assert (answer.status_code, answer.headers["upload-offset"]) == (201, "5")
    assert answer.json()["received_bytes"] == 5
    assert send(tenant, answer.headers["location"], 5, b"56789").status_code == 204
    digest = tenant.get(answer.headers["location"]).json()["digest"]
    assert digest == f"sha256:{hashlib.sha256(b'0123456789').hexdigest()}"


def test_an_empty_file_is_there_at_once(tenant: Tenant) -> None:
    path = begin(tenant, 0)
    assert tenant.get(path).json()["status"] == "received"
    source = {"type": "upload", "id": path.rpartition("/")[2]}
    answer = tenant.call("POST", "/datasets", json={"name": "d", "source": source})
    assert_problem(answer, 422, "dataset_empty", scratch=tenant.scratch)


def test_the_same_announcement_again(tenant: Tenant) -> None:
    first = announce(tenant, 10, Idempotency_Key="k")
    again = announce(tenant, 10, Idempotency_Key="k")
    assert again.headers["location"] == first.headers["location"]
    assert again.headers["idempotency-replayed"] == "true"
    other = announce(tenant, 11, Idempotency_Key="k")
    assert_problem(other, 422, "idempotency_key_reused")


ANNOUNCED = {
    "in-metadata": lambda digest: {"Upload-Metadata": f"sha256 {b64(digest.hex().encode())}"},
    "in-a-header": lambda digest: {"Repr-Digest": f"sha-256=:{b64(digest)}:"},
}


@pytest.mark.parametrize("how", ANNOUNCED)
def test_announced_digest(tenant: Tenant, how: str) -> None:
    headers = ANNOUNCED[how](hashlib.sha256(b"right").digest())
    path = begin(tenant, 5, **headers)
    assert send(tenant, path, 0, b"right").status_code == 204
    assert tenant.get(path).json()["status"] == "verified"


@pytest.mark.parametrize("how", ANNOUNCED)
def test_A6_announced_digest_is_another(tenant: Tenant, how: str) -> None:
    path = begin(tenant, 5, **ANNOUNCED[how](hashlib.sha256(b"right").digest()))
    assert_problem(send(tenant, path, 0, b"wrong"), 422, "checksum_mismatch")
    assert tenant.get(path).json()["failure"]["code"] == "checksum_mismatch"
    assert kept() == []
    assert tenant.call("HEAD", path, headers=PIECE).status_code == 410


def test_A6_wrong_sha256_at_the_end(tenant: Tenant) -> None:
    upload_id = finished(tenant, b"wrong")
    right = hashlib.sha256(b"right").hexdigest()
    answer = tenant.call("POST", f"/uploads/{upload_id}/complete", json={"sha256": right})
    assert_problem(answer, 422, "checksum_mismatch")
    assert kept() == []
    source = {"type": "upload", "id": upload_id}
    answer = tenant.call("POST", "/datasets", json={"name": "d", "source": source})
    problem = assert_problem(answer, 422, "upload_rejected")
    assert problem["cause"]["code"] == "checksum_mismatch"


def test_A6_wrong_sha256_with_the_metadata(tenant: Tenant) -> None:
    source = {"type": "upload", "id": finished(tenant, files.parquet())}
    body = {"name": "d", "source": source, "sha256": "0" * 64}
    answer = tenant.call("POST", "/datasets", json=body)
    assert_problem(answer, 422, "checksum_mismatch", scratch=tenant.scratch)
    del body["sha256"]
    assert tenant.call("POST", "/datasets", json=body).status_code == 201


@pytest.mark.parametrize("algorithm", ["sha1", "sha256"])
def test_checksum_of_a_piece(tenant: Tenant, algorithm: str) -> None:
    path = begin(tenant, 10)
    assert send(tenant, path, 0, b"01").status_code == 204
    digest = hashlib.new(algorithm, b"2345").digest()
    wrong = send(tenant, path, 2, b"abcd", Upload_Checksum=f"{algorithm} {b64(digest)}")
    assert_problem(wrong, 460, "checksum_mismatch")
    assert offset_of(tenant, path) == 2
    right = send(tenant, path, 2, b"2345", Upload_Checksum=f"{algorithm} {b64(digest)}")
    assert right.headers["upload-offset"] == "6"
    assert send(tenant, path, 6, b"6789").status_code == 204
    whole = hashlib.sha256(b"0123456789").hexdigest()
    assert tenant.get(path).json()["digest"] == f"sha256:{whole}"


def test_a_refused_piece_costs_no_second_reading(tenant: Tenant) -> None:
    path = begin(tenant, 10)
    send(tenant, path, 0, b"012")
    before = appending._digests[path.rpartition("/")[2]]
    wrong = f"sha256 {b64(hashlib.sha256(b'other').digest())}"
    assert_problem(send(tenant, path, 3, b"345", Upload_Checksum=wrong), 460, "checksum_mismatch")
    assert appending._digests[path.rpartition("/")[2]] == before
    assert send(tenant, path, 3, b"3456789").status_code == 204
    whole = hashlib.sha256(b"0123456789").hexdigest()
    assert tenant.get(path).json()["digest"] == f"sha256:{whole}"
    assert path.rpartition("/")[2] not in appending._digests


def test_A2_announced_over_the_limit(tenant: Tenant) -> None:
    answer = announce(tenant, 32 * 2**20 + 1)
    assert_problem(answer, 413, "payload_too_large")
    assert tenant.count(tables.Upload) == 0


def test_A2_a_source_over_the_limit(tenant: Tenant, settings: Settings) -> None:
    session.configure(settings.model_copy(update={"max_dataset_bytes": 10}))
    source = {"type": "upload", "id": finished(tenant, files.parquet())}
    answer = tenant.call("POST", "/datasets", json={"name": "d", "source": source})
    assert_problem(answer, 413, "payload_too_large", scratch=tenant.scratch)


def test_A4_more_than_declared(tenant: Tenant) -> None:
    path = begin(tenant, 5)
    for content in (b"012345", iter([b"01", b"2345"])):
        answer = send(tenant, path, offset_of(tenant, path), content)
        assert_problem(answer, 413, "upload_exceeds_declared_size")
    assert offset_of(tenant, path) <= 5


@pytest.mark.parametrize("offset", [0, 2, 4, 99])
def test_A7_gap_or_overlap(tenant: Tenant, offset: int) -> None:
    path = begin(tenant, 10)
    send(tenant, path, 0, b"012")
    answer = send(tenant, path, offset, b"345")
    assert_problem(answer, 409, "upload_offset_conflict")
    assert answer.headers["upload-offset"] == "3"


def test_A8_two_writers(tenant: Tenant) -> None:
    path = begin(tenant, 10)
    with partial.open_locked(tenant.id, path.rpartition("/")[2], 0):
        answer = send(tenant, path, 0, b"0")
    assert_problem(answer, 409, "upload_locked")
    assert answer.headers["retry-after"] == "1"
    assert send(tenant, path, 0, b"0").status_code == 204


REFUSED: dict[str, tuple[dict[str, str], int, str]] = {
    "A9-content-encoding": ({"Content-Encoding": "gzip"}, 415, "unsupported_content_encoding"),
    "A10-multipart": (
        {"Content-Type": "multipart/form-data; boundary=x"},
        415,
        "unsupported_media_type",
    ),
    "other-version": ({"Tus-Resumable": "0.2.2"}, 412, "tus_version_unsupported"),
    "no-version": ({"Tus-Resumable": ""}, 412, "tus_version_unsupported"),
    "no-offset": ({"Upload-Offset": ""}, 400, "upload_offset_missing"),
    "negative-offset": ({"Upload-Offset": "-1"}, 400, "upload_offset_missing"),
    "huge-offset": ({"Upload-Offset": "9" * 30}, 400, "upload_offset_missing"),
    "other-algorithm": ({"Upload-Checksum": "md5 AAAA"}, 400, "digest_unsupported"),
    "no-base64": ({"Upload-Checksum": "sha1 ?"}, 400, "digest_unsupported"),
    "short-checksum": ({"Upload-Checksum": "sha1 AAAA"}, 400, "digest_unsupported"),
}


@pytest.mark.parametrize("row", REFUSED)
def test_refused_piece(tenant: Tenant, row: str) -> None:
    headers, status, code = REFUSED[row]
    path = begin(tenant, 10)
    answer = tenant.call(
        "PATCH", path, content=b"0", headers=PIECE | {"Upload-Offset": "0"} | headers
    )
    assert_problem(answer, status, code)
    assert answer.headers["tus-resumable"] == "1.0.0"
    assert offset_of(tenant, path) == 0


ANNOUNCEMENTS: dict[str, tuple[dict[str, str], str]] = {
    "no-length": ({"Upload-Length": ""}, "upload_length_missing"),
    "negative-length": ({"Upload-Length": "-1"}, "upload_length_missing"),
    "huge-length": ({"Upload-Length": "9" * 30}, "upload_length_missing"),
    "metadata-no-base64": ({"Upload-Metadata": "name ?"}, "malformed_metadata_header"),
    "metadata-twice": ({"Upload-Metadata": "a Yg==,a Yg=="}, "malformed_metadata_header"),
    "metadata-no-name": ({"Upload-Metadata": "a Yg==,,"}, "malformed_metadata_header"),
    "metadata-too-long": ({"Upload-Metadata": "a " + "AAAA" * 1200}, "malformed_metadata_header"),
    "digest-not-hex": ({"Upload-Metadata": f"sha256 {b64(b'x')}"}, "digest_unsupported"),
    "two-digests": (
        {
            "Upload-Metadata": f"sha256 {b64(b'0' * 64)}",
            "Repr-Digest": f"sha-256=:{b64(bytes(range(32)))}:",
        },
        "digest_unsupported",
    ),
}


@pytest.mark.parametrize("row", ANNOUNCEMENTS)
def test_refused_announcement(tenant: Tenant, row: str) -> None:
    headers, code = ANNOUNCEMENTS[row]
    given = {"Tus-Resumable": "1.0.0", "Upload-Length": "10"} | headers
    assert_problem(tenant.call("POST", "/uploads", headers=given), 400, code)
    assert tenant.count(tables.Upload) == 0


def test_A25_disk_full(tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = begin(tenant, 10)
    send(tenant, path, 0, b"01")
    monkeypatch.setattr(appending.Sink, "_store", full)
    assert_problem(send(tenant, path, 2, b"23"), 507, "insufficient_storage")
    assert kept() == []
    assert tenant.get(path).json()["failure"]["code"] == "insufficient_storage"


def test_A25_no_room_from_the_start(tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial, "free_bytes", lambda: 9)
    assert_problem(announce(tenant, 10), 507, "insufficient_storage")
    assert tenant.count(tables.Upload) == 0


def test_the_room_is_known_before_anything_was_stored(settings: Settings, tmp_path: Path) -> None:
    session.configure(settings.model_copy(update={"data_dir": tmp_path / "not" / "there" / "yet"}))
    assert partial.free_bytes() > 0


def test_quota(tenant: Tenant, other: Tenant, settings: Settings) -> None:
    session.configure(settings.model_copy(update={"max_bytes_in_flight": 25}))
    first = begin(tenant, 10)
    begin(tenant, 15)
    assert_problem(announce(tenant, 1), 413, "quota_exceeded")
    assert announce(other, 25).status_code == 201
    assert tenant.call("DELETE", first, headers=PIECE).status_code == 204
    assert announce(tenant, 10).status_code == 201


def test_a_given_up_upload_leaves_nothing(tenant: Tenant) -> None:
    path = begin(tenant, 10, Upload_Metadata=f"filename {b64(b'someone.pt')}")
    send(tenant, path, 0, b"01234")
    assert tenant.call("DELETE", path, headers=PIECE).status_code == 204
    assert kept() == []
    assert tenant.get(path).json()["status"] == "aborted"
    assert row_of(tenant, path).upload_metadata is None
    assert_problem(send(tenant, path, 5, b"5"), 410, "upload_aborted")
    assert_problem(tenant.call("DELETE", path, headers=PIECE), 410, "upload_aborted")


def test_an_idle_upload_expires(tenant: Tenant) -> None:
    idle, busy = begin(tenant, 10), begin(tenant, 10)
    for path in (idle, busy):
        send(tenant, path, 0, b"01234")
    assert partial.sweep() == 0
    yesterday = datetime.now(UTC) - timedelta(hours=24, seconds=1)
    with transaction() as writer:
        mine = tables.Upload.id == idle.rpartition("/")[2]
        writer.execute(update(tables.Upload).where(mine).values(touched_at=yesterday))
    assert partial.sweep() == 1
    assert kept() == [busy.rpartition("/")[2]]
    assert tenant.get(idle).json()["status"] == "expired"
    assert_problem(send(tenant, idle, 5, b"5"), 410, "upload_expired")
    assert send(tenant, busy, 5, b"56789").status_code == 204


def test_bytes_beyond_the_ledger_do_not_count(tenant: Tenant) -> None:
    """As after a kill: the file is longer than what was written down, or its hash is unknown."""
    path = begin(tenant, 10)
    send(tenant, path, 0, b"012")
    appending._digests.clear()
    with partial.path(tenant.id, path.rpartition("/")[2]).open("ab") as file:
        file.write(b"never written down, and longer than the rest")
    assert offset_of(tenant, path) == 3
    assert send(tenant, path, 3, b"3456789").status_code == 204
    whole = hashlib.sha256(b"0123456789").hexdigest()
    assert tenant.get(path).json()["digest"] == f"sha256:{whole}"


def test_lost_bytes_are_not_made_up(tenant: Tenant) -> None:
    path = begin(tenant, 10)
    send(tenant, path, 0, b"012")
    partial.path(tenant.id, path.rpartition("/")[2]).write_bytes(b"0")
    assert_problem(send(tenant, path, 3, b"3"), 410, "upload_lost")
    assert tenant.get(path).json()["status"] == "failed"


def test_what_another_disk_has_is_not_lost(tenant: Tenant, settings: Settings) -> None:
    """As behind two processes with a data folder each."""
    path = begin(tenant, 10)
    send(tenant, path, 0, b"012")
    body = {"name": "d", "source": {"type": "upload", "id": path.rpartition("/")[2]}}
    here, there = (settings.model_copy(update=at) for at in ({}, elsewhere(settings)))
    session.configure(there)
    answer = send(tenant, path, 3, b"3456789")
    assert_problem(answer, 503, "upload_elsewhere")
    assert int(answer.headers["retry-after"]) > 0
    session.configure(here)
    assert send(tenant, path, 3, b"3456789").status_code == 204
    session.configure(there)
    assert kept() == []
    assert_problem(tenant.call("POST", "/datasets", json=body), 503, "upload_elsewhere")
    assert tenant.get(path).json()["status"] == "received"


def elsewhere(settings: Settings) -> dict[str, object]:
    """The same database beside another data folder."""
    return {"data_dir": settings.data_dir / "other", "database_url": settings.database}


def test_a_dataset_takes_an_upload(tenant: Tenant) -> None:
    content = files.parquet()
    upload_id = finished(tenant, content)
    body = {"name": "d", "source": {"type": "upload", "id": upload_id}}
    key = {"Idempotency-Key": "k"}
    answer = tenant.call("POST", "/datasets", json=body, headers=key)
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert made["digest"] == f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert made["size_bytes"] == len(content)
    (blob,) = [key for key, _ in blobs().keys()]  # noqa: SIM118  # not a mapping
    assert blobs().path(blob).read_bytes() == content
    assert blobs().path(blob).stat().st_nlink == 1
    assert kept() == []
    assert tenant.get(f"/uploads/{upload_id}").json()["used_by"] == made["id"]
    again = tenant.call("POST", "/datasets", json=body, headers=key)
    assert (again.json(), again.headers["idempotency-replayed"]) == (made, "true")
    assert_problem(tenant.call("POST", "/datasets", json=body), 410, "upload_used")
    assert tenant.count(tables.Dataset) == 1


def test_a_model_takes_an_upload(tenant: Tenant) -> None:
    metadata = tenant.metadata(tenant.ready_dataset())
    source = {"type": "upload", "id": finished(tenant, files.weights())}
    answer = tenant.call("POST", "/models", json=metadata | {"source": source})
    assert answer.status_code == 201, answer.text
    digest = hashlib.sha256(files.weights()).hexdigest()
    assert answer.json()["latest_version"]["digest"] == f"sha256:{digest}"


def test_a_model_takes_two_uploads(tenant: Tenant) -> None:
    metadata = tenant.metadata("") | {"dataset": None, "holdout": None}
    sources = {
        name: {"type": "upload", "id": finished(tenant, content)}
        for name, content in (("source", files.weights()), ("importance", files.weights()))
    }
    answer = tenant.call("POST", "/models", json=metadata | sources)
    assert answer.status_code == 201, answer.text
    assert kept() == []
    with session.reading() as reader:
        (version,) = reader.query(tables.Version).all()
        assert blobs().exists(version.importance_blob or "")


def test_an_upload_goes_through_the_same_checks(tenant: Tenant) -> None:
    metadata = tenant.metadata(tenant.ready_dataset())
    upload_id = finished(tenant, b"PK\x03\x04" + bytes(100))
    wanted = {"source": {"type": "upload", "id": upload_id}, "format": "safetensors"}
    answer = tenant.call("POST", "/models", json=metadata | wanted)
    assert_problem(answer, 422, "media_type_mismatch", scratch=tenant.scratch)
    answer = tenant.call("POST", "/datasets", json={"name": "d", "source": wanted["source"]})
    assert_problem(answer, 415, "unsupported_media_type", scratch=tenant.scratch)
    assert tenant.get(f"/uploads/{upload_id}").json()["used_by"] is None


def test_sources_that_do_not_do(tenant: Tenant, other: Tenant) -> None:
    unfinished = begin(tenant, 10).rpartition("/")[2]
    foreign = finished(other, files.parquet())
    for upload_id, status, code in (
        (unfinished, 409, "upload_incomplete"),
        (foreign, 404, "not_found"),
        ("upl_1", 404, "not_found"),
    ):
        source = {"type": "upload", "id": upload_id}
        answer = tenant.call("POST", "/datasets", json={"name": "d", "source": source})
        assert_problem(answer, status, code, scratch=tenant.scratch)
    answer = tenant.call("POST", "/datasets", json={"name": "d"})
    assert_problem(answer, 422, "source_missing", scratch=tenant.scratch)
    source = {"type": "upload", "id": unfinished}
    answer = tenant.upload("/datasets", files.parquet(), {"name": "d", "source": source})
    assert_problem(answer, 422, "source_redundant", scratch=tenant.scratch)


def test_who_has_no_key_learns_nothing_of_versions(tenant: Tenant) -> None:
    assert_problem(tenant.http.post("/uploads"), 401, "unauthenticated")
