"""Sources by URL: what the operator's folder and mirror give, and rows H of what is refused."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from httpx2 import Response

from app.settings import Settings
from app.store import session, tables

from . import files
from .world import Tenant, assert_problem

CONTENT = files.parquet()
RECORDS = "owner/records/resolve/main/data/records.parquet"
ANSWERS: dict[str, tuple[int, dict[str, str], bytes]] = {
    f"/base/{RECORDS}": (200, {}, CONTENT),
    "/base/owner/records/resolve/v2/records.parquet": (200, {}, CONTENT),
    "/base/owner/moved/resolve/main/f": (302, {"Location": f"/base/{RECORDS}"}, b""),
    "/base/owner/broken/resolve/main/f": (500, {}, b""),
    "/base/owner/short/resolve/main/f": (200, {"Content-Length": "9999"}, CONTENT),
    "/base/owner/large/resolve/main/f": (200, {}, bytes(2**21 + 1)),
}


class Mirror(BaseHTTPRequestHandler):
    """A web server with a few files."""

    asked: list[str] = []  # noqa: RUF012  # shared on purpose

    def do_GET(self) -> None:
        self.asked.append(self.path)
        status, headers, body = ANSWERS.get(self.path, (404, {}, b""))
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def mirror() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Mirror)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/base"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def root(tenant: Tenant, other: Tenant, settings: Settings, tmp_path: Path) -> Path:
    """The tenant's part of the folder of imports, and what must not be reached from it."""
    folder = tmp_path / "imports" / tenant.id
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "records.parquet").write_bytes(CONTENT)
    (tmp_path / "secret").write_bytes(CONTENT)
    (tmp_path / "imports" / other.id).mkdir()
    (tmp_path / "imports" / other.id / "records.parquet").write_bytes(CONTENT)
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "inside").symlink_to(folder / "sub" / "records.parquet")
    (folder / "up").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe")
    session.configure(settings.model_copy(update={"import_root": tmp_path / "imports"}))
    return folder


def bring(tenant: Tenant, url: str, **more: Any) -> Response:
    body = {"name": "d", "source": {"type": "url", "url": url}} | more
    return tenant.call("POST", "/datasets", json=body)


def assert_taken(tenant: Tenant, answer: Response) -> None:
    assert answer.status_code == 201, answer.text
    assert answer.json()["digest"] == f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
    assert list(tenant.scratch.iterdir()) == []


def test_a_file_of_the_folder(tenant: Tenant, root: Path) -> None:
    assert_taken(tenant, bring(tenant, "file:///sub/records.parquet"))
    assert (root / "sub" / "records.parquet").read_bytes() == CONTENT


def test_a_model_of_the_folder_goes_through_the_same_checks(tenant: Tenant, root: Path) -> None:
    metadata = tenant.metadata(tenant.ready_dataset())
    for name, content in (("good", files.weights()), ("bad", b"PK\x03\x04" + bytes(100))):
        (root / name).write_bytes(content)
    source = {"source": {"type": "url", "url": "file:///good"}}
    assert tenant.call("POST", "/models", json=metadata | source).status_code == 201
    source = {"source": {"type": "url", "url": "file:///bad"}, "format": "safetensors"}
    answer = tenant.call("POST", "/models", json=metadata | source)
    assert_problem(answer, 422, "media_type_mismatch", scratch=tenant.scratch)


def test_what_is_checked_of_a_file(tenant: Tenant, settings: Settings, root: Path) -> None:
    answer = bring(tenant, "file:///sub/records.parquet", sha256="0" * 64)
    assert_problem(answer, 422, "checksum_mismatch", scratch=tenant.scratch)
    (root / "large").write_bytes(bytes(settings.max_dataset_bytes + 1))
    answer = bring(tenant, "file:///large")
    assert_problem(answer, 413, "payload_too_large", scratch=tenant.scratch)


@pytest.mark.parametrize("path", ["link", "inside", "up/secret", "pipe", "sub", "nothing", "sub/x"])
def test_no_way_out_of_the_folder(tenant: Tenant, root: Path, path: str) -> None:
    answer = bring(tenant, f"file:///{path}")
    assert_problem(answer, 422, "source_not_found", scratch=tenant.scratch)


def test_another_tenants_file_is_not_there(tenant: Tenant, other: Tenant, root: Path) -> None:
    for path in ("records.parquet", f"{other.id}/records.parquet"):
        assert_problem(bring(tenant, f"file:///{path}"), 422, "source_not_found")
    assert_problem(bring(tenant, f"file:///../{other.id}/records.parquet"), 422, "url_invalid")
    assert bring(other, "file:///records.parquet").status_code == 201


ROWS = {
    "H1-http": ("http://example.com/f", "url_scheme_not_allowed"),
    "H1-https": ("https://example.com/f", "url_scheme_not_allowed"),
    "H2-gopher": ("gopher://example.com/f", "url_scheme_not_allowed"),
    "H2-ftp": ("ftp://example.com/f", "url_scheme_not_allowed"),
    "H2-data": ("data:text/plain,x", "url_scheme_not_allowed"),
    "H2-redis": ("redis://127.0.0.1:6379/0", "url_scheme_not_allowed"),
    "H3-loopback": ("http://127.0.0.1/f", "url_scheme_not_allowed"),
    "H4-metadata": ("http://169.254.169.254/latest", "url_scheme_not_allowed"),
    "H10-userinfo": ("hf://good@evil/r/f", "url_invalid"),
    "H10-backslash": ("hf:\\\\evil\\r\\f", "url_invalid"),
    "H10-crlf": ("hf://o/r/f\r\nX: y", "url_invalid"),
    "H10-homograph": ("hf://\u043ewner/r/f", "url_invalid"),
    "H10-escape": ("hf://o/r/%2e%2e/f", "url_invalid"),
    "H11-port": ("hf://o:22/r/f", "url_invalid"),
    "H14-bucket": ("s3://bucket/key", "data_source_not_allowed"),
    "H15-upwards": ("s3://bucket/../other", "url_invalid"),
    "H15-local-path": ("/etc/passwd", "url_invalid"),
    "H15-file-upwards": ("file:///sub/../../secret", "url_invalid"),
    "H15-file-host": ("file://host/sub", "url_invalid"),
    "H15-file-double": ("file:////etc/passwd", "url_invalid"),
    "H15-empty-bucket": ("s3:///key", "url_invalid"),
    "H15-query": ("s3://bucket/key?x=1", "url_invalid"),
    "long": ("hf://o/r/" + "a" * 2048, "url_invalid"),
    "brackets": ("http://[::1", "url_invalid"),
    "hf-no-mirror": ("hf://o/r/f", "data_source_not_allowed"),
    "hf-two-parts": ("hf://o/r", "data_source_not_allowed"),
}


@pytest.mark.parametrize("row", ROWS)
def test_refused_url(tenant: Tenant, root: Path, row: str) -> None:
    url, code = ROWS[row]
    answer = bring(tenant, url)
    assert_problem(answer, 422, code, scratch=tenant.scratch)
    assert tenant.count(tables.Dataset) == 0


def test_H2_file_where_there_is_no_folder(tenant: Tenant) -> None:
    assert_problem(bring(tenant, "file:///etc/passwd"), 422, "url_scheme_not_allowed")


def test_a_mirror_that_is_a_folder(tenant: Tenant, settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "mirror" / "owner" / "records"
    folder.mkdir(parents=True)
    (folder / "f").write_bytes(CONTENT)
    (folder / "link").symlink_to(tmp_path / "lethe.db")
    session.configure(settings.model_copy(update={"hf_mirror": str(tmp_path / "mirror")}))
    assert_taken(tenant, bring(tenant, "hf://owner/records/f"))
    assert_problem(bring(tenant, "hf://owner/records/link"), 422, "source_not_found")
    assert_problem(bring(tenant, "hf://owner/records@v2/f"), 422, "url_invalid")
    assert_problem(bring(tenant, "hf://owner/records"), 422, "url_invalid")


UPWARDS = [f"hf://owner/{each}/f" for each in ("..@", ".@", "@", "records@", "..@v2", "records@..")]


@pytest.mark.parametrize("url", UPWARDS)
@pytest.mark.parametrize("kind", ["folder", "web"])
def test_H15_around_the_revision(
    tenant: Tenant, settings: Settings, tmp_path: Path, mirror: str, url: str, kind: str
) -> None:
    (tmp_path / "mirror" / "owner").mkdir(parents=True)
    (tmp_path / "mirror" / "f").write_bytes(CONTENT)
    where = str(tmp_path / "mirror") if kind == "folder" else mirror
    session.configure(settings.model_copy(update={"hf_mirror": where}))
    Mirror.asked.clear()
    assert_problem(bring(tenant, url), 422, "url_invalid", scratch=tenant.scratch)
    assert Mirror.asked == []


def test_a_mirror_on_the_web(tenant: Tenant, settings: Settings, mirror: str) -> None:
    session.configure(settings.model_copy(update={"hf_mirror": mirror}))
    assert_taken(tenant, bring(tenant, "hf://owner/records/data/records.parquet"))
    assert_taken(tenant, bring(tenant, "hf://owner/records@v2/records.parquet"))


MIRRORED = {
    "H9-redirect": ("hf://owner/moved/f", 422, "source_redirected"),
    "unknown": ("hf://owner/nothing/f", 422, "source_not_found"),
    "H13-500": ("hf://owner/broken/f", 503, "source_unavailable"),
    "ends-early": ("hf://owner/short/f", 503, "source_unavailable"),
    "H12-too-large": ("hf://owner/large/f", 413, "payload_too_large"),
}


@pytest.mark.parametrize("row", MIRRORED)
def test_refused_by_the_mirror(tenant: Tenant, settings: Settings, mirror: str, row: str) -> None:
    session.configure(settings.model_copy(update={"hf_mirror": mirror}))
    url, status, code = MIRRORED[row]
    Mirror.asked.clear()
    assert_problem(bring(tenant, url), status, code, scratch=tenant.scratch)
    assert len(Mirror.asked) == 1


def test_a_mirror_that_is_away(tenant: Tenant, settings: Settings) -> None:
    session.configure(settings.model_copy(update={"hf_mirror": "http://127.0.0.1:1"}))
    problem = assert_problem(bring(tenant, "hf://o/r/f"), 503, "source_unavailable")
    assert problem["retryable"]
