"""Bad input, rows E as far as they are seen at once, and what a good upload answers."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile

import numpy as np
import pytest

from app.store import tables
from app.store.blobs import blobs

from . import files
from .world import Tenant, assert_problem

E_ROWS = {
    "E20-empty": (b"", "dataset_empty"),
    "E2-wrong-magic": (b"PAR2" + bytes(64) + b"PAR2", "media_type_mismatch"),
    "E2-truncated": (files.parquet()[:-1], "media_type_mismatch"),
    "E2-magic-only": (b"PAR1PAR1", "media_type_mismatch"),
    "E5-encrypted-footer": (b"PARE" + bytes(64) + b"PARE", "media_type_mismatch"),
}


def kept() -> list[bytes]:
    """Contents of all blobs."""
    store = blobs()
    return [store.path(key).read_bytes() for key, _ in store.keys()]  # noqa: SIM118  # no dict


def tar(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0) -> bytes:
    """An archive whose one entry is up to something."""
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, "/etc/passwd"
    return info.tobuf() + bytes(1024)


def array(values: np.ndarray, *, pickled: bool = False) -> bytes:
    sink = io.BytesIO()
    np.save(sink, values, allow_pickle=pickled)
    return sink.getvalue()


OTHER_FORMATS = {
    "E13-tar-parent": tar("../../evil"),
    "E13-tar-device": tar("null", tarfile.CHRTYPE),
    "E13-tar-hardlink": tar("passwd", tarfile.LNKTYPE),
    "E13-tar-8-EB": tar("sparse", tarfile.GNUTYPE_SPARSE, 2**62),
    "E14-npy-objects": array(np.array([{"a": 1}], dtype=object), pickled=True),
    "E15-npy-shape": b"\x93NUMPY\x01\x00v\x00"
    + b"{'descr': '<f4', 'fortran_order': False, 'shape': (1152921504606846976,)}".ljust(117)
    + b"\n",
    "E16-jsonl-long-line": b'{"id": "' + b"a" * 2**20,
    "E17-csv-columns": b"," * 10**6,
    "E17-csv-quote": b'id,label\n"r0,0\n',
    "E17-csv-nul": b"id,label\nr0,\0\n",
    "E18-csv-formula": b"id,label\n=cmd(),0\n",
}


@pytest.mark.parametrize("row", OTHER_FORMATS)
def test_other_formats(tenant: Tenant, row: str) -> None:
    answer = tenant.upload("/datasets", OTHER_FORMATS[row], {"name": "d"})
    assert_problem(answer, 415, "unsupported_media_type", scratch=tenant.scratch)
    assert tenant.count(tables.Dataset) == 0


@pytest.mark.parametrize("row", E_ROWS)
def test_file(tenant: Tenant, row: str) -> None:
    content, code = E_ROWS[row]
    answer = tenant.upload("/datasets", content, {"name": "d"})
    assert_problem(answer, 422, code, scratch=tenant.scratch)
    assert tenant.count(tables.Dataset) == 0


def test_created(tenant: Tenant) -> None:
    content = files.parquet()
    digest = hashlib.sha256(content).hexdigest()
    wanted = {"name": "d", "class_names": ["a", "b"], "sha256": digest, "metadata": {"k": "v"}}
    answer = tenant.upload("/datasets", content, wanted)
    assert answer.status_code == 201
    body = answer.json()
    assert body["object"] == "dataset"
    assert body["status"] == "validating"
    assert body["digest"] == f"sha256:{digest}"
    assert body["size_bytes"] == len(content)
    assert body["metadata"] == {"k": "v"}
    assert answer.headers["location"] == f"/datasets/{body['id']}" == body["links"]["self"]
    stored = kept()
    assert stored == [content]
    assert list(tenant.scratch.iterdir()) == []


def raw(tenant: Tenant, content: bytes, metadata: bytes, **headers: str) -> object:
    every = {
        "Content-Type": "application/octet-stream",
        "X-Dataset-Metadata": base64.b64encode(metadata).decode(),
    }
    return tenant.call("POST", "/datasets", content=content, headers=every | headers)


def test_raw_upload(tenant: Tenant) -> None:
    content = files.parquet()
    digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
    answer = raw(tenant, content, b'{"name": "d"}', **{"Repr-Digest": f"sha-256=:{digest}:"})
    assert answer.status_code == 201
    assert kept() == [content]


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"X-Dataset-Metadata": "%"}, 400, "malformed_metadata_header"),
        ({"X-Dataset-Metadata": "e30="}, 422, "validation_failed"),
        ({"Repr-Digest": "md5=:AAAA:"}, 400, "digest_unsupported"),
    ],
)
def test_raw_upload_refused(
    tenant: Tenant, headers: dict[str, str], status: int, code: str
) -> None:
    answer = raw(tenant, files.parquet(), b'{"name": "d"}', **headers)
    assert_problem(answer, status, code, scratch=tenant.scratch)


def test_raw_upload_without_metadata(tenant: Tenant) -> None:
    headers = {"Content-Type": "application/octet-stream"}
    answer = tenant.call("POST", "/datasets", content=files.parquet(), headers=headers)
    assert_problem(answer, 422, "validation_failed", scratch=tenant.scratch)


BOUNDARY = "boundary"


def part(name: str, content: bytes, *extra: str) -> bytes:
    lines = [f'Content-Disposition: form-data; name="{name}"; filename="../../x"', *extra]
    head = f"--{BOUNDARY}\r\n" + "".join(f"{line}\r\n" for line in lines) + "\r\n"
    return head.encode() + content + b"\r\n"


FILE = part("file", files.parquet())
METADATA = part("metadata", b'{"name": "d"}')
END = f"--{BOUNDARY}--\r\n".encode()
WRONG = base64.b64encode(bytes(32)).decode()
MULTIPART_ROWS = {
    "file-missing": (METADATA + END, 422, "validation_failed"),
    "metadata-missing": (FILE + END, 422, "validation_failed"),
    "file-twice": (FILE + METADATA + FILE + END, 400, "duplicate_part"),
    "metadata-twice": (METADATA + METADATA + FILE + END, 400, "duplicate_part"),
    "unknown-part": (METADATA + part("more", b"") + FILE + END, 422, "unknown_field"),
    "no-end": (METADATA + FILE, 400, "malformed_multipart"),
    "cut-in-the-file": ((METADATA + FILE)[:-20], 400, "malformed_multipart"),
    "no-multipart": (b"hello", 400, "malformed_multipart"),
    "empty": (b"", 400, "malformed_multipart"),
    "base64-part": (
        METADATA + part("file", b"UEFS", "Content-Transfer-Encoding: base64") + END,
        415,
        "unsupported_content_encoding",
    ),
    "metadata-not-json": (
        FILE + part("metadata", b"name: d", "Content-Type: application/yaml") + END,
        415,
        "unsupported_media_type",
    ),
    "part-digest": (
        METADATA + part("file", b"PAR1", f"Content-Digest: sha-256=:{WRONG}:") + END,
        422,
        "checksum_mismatch",
    ),
}


def multipart(tenant: Tenant, content: bytes, boundary: str = BOUNDARY) -> object:
    media_type = f"multipart/form-data; boundary={boundary}"
    return tenant.call("POST", "/datasets", content=content, headers={"Content-Type": media_type})


@pytest.mark.parametrize("row", MULTIPART_ROWS)
def test_multipart(tenant: Tenant, row: str) -> None:
    content, status, code = MULTIPART_ROWS[row]
    assert_problem(multipart(tenant, content), status, code, scratch=tenant.scratch)
    assert tenant.count(tables.Dataset) == 0


def test_multipart_with_an_endless_boundary(tenant: Tenant) -> None:
    answer = multipart(tenant, FILE, boundary="b" * 5000)
    assert_problem(answer, 400, "malformed_multipart", scratch=tenant.scratch)


@pytest.mark.parametrize("order", [FILE + METADATA, METADATA + FILE])
def test_parts_in_either_order(tenant: Tenant, order: bytes) -> None:
    answer = multipart(tenant, order + END)
    assert answer.status_code == 201, answer.text
    assert kept() == [files.parquet()]


def test_file_that_holds_the_boundary_in_pieces(tenant: Tenant) -> None:
    """Bytes that look like a boundary, and chunks that cut one, stay bytes of the file."""
    content = b"PAR1" + f"\r\n--{BOUNDARY[:-1]}\r\n--".encode() * 1000 + b"PAR1"
    whole = METADATA + part("file", content) + END

    def chunks():
        for start in range(0, len(whole), 7):
            yield whole[start : start + 7]

    media_type = f"multipart/form-data; boundary={BOUNDARY}"
    headers = {"Content-Type": media_type, "Content-Length": str(len(whole))}
    answer = tenant.call("POST", "/datasets", content=chunks(), headers=headers)
    assert answer.json()["digest"] == f"sha256:{hashlib.sha256(content).hexdigest()}"


@pytest.mark.parametrize("excess", [1, 2**21])
@pytest.mark.parametrize("kind", ["multipart", "raw"])
def test_over_the_limit(tenant: Tenant, settings, kind: str, excess: int) -> None:
    """One byte more is within what a multipart body may hold beside its file."""
    content = bytes(settings.max_dataset_bytes + excess)
    if kind == "multipart":
        content = METADATA + part("file", content) + END
    media_type = {
        "multipart": f"multipart/form-data; boundary={BOUNDARY}",
        "raw": "application/octet-stream",
    }
    headers = {
        "Content-Type": media_type[kind],
        "X-Dataset-Metadata": base64.b64encode(json.dumps({"name": "d"}).encode()).decode(),
    }
    answer = tenant.call("POST", "/datasets", content=content, headers=headers)
    assert_problem(answer, 413, "payload_too_large", scratch=tenant.scratch)


def test_metadata_over_1_MiB(tenant: Tenant) -> None:
    answer = multipart(tenant, part("metadata", b" " * (2**20 + 1)) + FILE + END)
    assert_problem(answer, 413, "payload_too_large", scratch=tenant.scratch)


def test_F20_names_survive(tenant: Tenant) -> None:
    names = ["'; drop table datasets; --", "\U0001f5d1\ufe0f", "\u202eabc", "\U00020000", "%s {0}"]
    for name in names:
        dataset_id = tenant.dataset(name=name)
        assert tenant.get(f"/datasets/{dataset_id}").json()["name"] == name


def test_deleted_dataset(tenant: Tenant) -> None:
    dataset_id = tenant.ready_dataset()
    assert tenant.call("DELETE", f"/datasets/{dataset_id}").status_code == 204
    assert tenant.get(f"/datasets/{dataset_id}").json()["status"] == "deleted"
    assert tenant.get("/datasets").json()["data"] == []
    shown = tenant.get("/datasets?status=deleted").json()["data"]
    assert [item["id"] for item in shown] == [dataset_id]
    assert_problem(tenant.post_model(dataset_id=dataset_id), 404, "not_found")


def test_dataset_in_use(tenant: Tenant) -> None:
    dataset_id = tenant.ready_dataset()
    model_id = tenant.ready_model(dataset_id=dataset_id)
    assert_problem(tenant.call("DELETE", f"/datasets/{dataset_id}"), 409, "in_use")
    assert tenant.call("DELETE", f"/models/{model_id}").status_code == 204
    assert tenant.call("DELETE", f"/datasets/{dataset_id}").status_code == 204
