"""Bytes under keys: the same promises of the folder and of the bucket."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import obstore
import pytest
from pydantic import ValidationError

from app.settings import Settings
from app.store.blobs import BlobDamaged, BlobMissing, Blobs, Folder, StorageAway
from app.store.bucket import PART_BYTES, Bucket, _connect

KEY = "ten_1/uploads/u-1.bin"
LARGE = hashlib.shake_128(b"seed").digest(1000) * (2 * PART_BYTES // 1000 + 700)


@pytest.fixture(params=["folder", "bucket"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    if request.param == "folder":
        return Folder(tmp_path)
    options = request.getfixturevalue("s3_settings")
    return Bucket(Settings(data_dir=tmp_path, **options))


@pytest.fixture
def bucket(s3_settings: dict[str, Any], tmp_path: Path) -> Bucket:
    return Bucket(Settings(data_dir=tmp_path, **s3_settings))


def adopt(blobs: Blobs, content: bytes, key: str = KEY) -> Path:
    file = blobs.scratch() / "upload"
    file.write_bytes(content)
    blobs.adopt(file, key)
    return file


def read(blobs: Blobs, start: int, length: int, key: str = KEY) -> bytes:
    with blobs.open(key) as opened:
        return b"".join(opened.chunks(start, length))


@pytest.mark.parametrize(
    "key",
    ["", "..", "a/../b", "/etc/passwd", "a//b", "a/", ".hidden", "a\x00b", "a\\b", "a/..", "~"],
)
def test_a_key_cannot_lead_out(blobs: Blobs, key: str) -> None:
    acts: list[Callable[[], object]] = [
        lambda: adopt(blobs, b"x", key),
        lambda: blobs.fetch(key, blobs.scratch()),
        lambda: blobs.open(key),
        lambda: blobs.delete(key),
        lambda: blobs.exists(key),
    ]
    for act in acts:
        with pytest.raises(ValueError, match="blob key"):
            act()


def test_adopted_bytes_are_new_however_old_they_were(blobs: Blobs) -> None:
    file = blobs.scratch() / "old"
    file.write_bytes(b"received long ago")
    os.utime(file, (1.0, 1.0))
    blobs.adopt(file, KEY)
    ((_, changed),) = [entry for entry in blobs.keys() if entry[0] == KEY]  # noqa: SIM118  # no dict
    assert changed > time.time() - 3600


@pytest.mark.parametrize("content", [b"abc", b"", LARGE], ids=["small", "empty", "parts"])
def test_adopted_bytes_move_come_back_and_go(blobs: Blobs, content: bytes) -> None:
    before = time.time() - 2
    assert not adopt(blobs, content).exists()
    assert blobs.exists(KEY)
    assert blobs.fetch(KEY, blobs.scratch()).read_bytes() == content
    ((key, changed_at),) = blobs.keys()
    assert key == KEY
    assert before < changed_at < time.time() + 2
    for _ in range(2):
        blobs.delete(KEY)
        assert not blobs.exists(KEY)
        assert list(blobs.keys()) == []


def test_ranges(blobs: Blobs) -> None:
    adopt(blobs, LARGE)
    with blobs.open(KEY) as opened:
        assert opened.size == len(LARGE)
    for start, length in [
        (0, 0),
        (0, 1),
        (7, PART_BYTES),
        (PART_BYTES - 1, 2),
        (5, len(LARGE) - 5),
    ]:
        assert read(blobs, start, length) == LARGE[start : start + length]


def test_a_key_is_written_once(blobs: Blobs) -> None:
    for content, other in [(b"abc", b"abd"), (LARGE, LARGE[:-1] + b"!")]:
        key = f"t/{len(content)}"
        adopt(blobs, content, key)
        # An answer that was lost is not an error when the call is made again.
        assert not adopt(blobs, content, key).exists()
        with pytest.raises(FileExistsError):
            adopt(blobs, other, key)
        assert read(blobs, 0, len(content), key) == content


def test_missing_bytes_are_told(blobs: Blobs) -> None:
    with pytest.raises(BlobMissing, match=KEY):
        blobs.open(KEY)
    with pytest.raises(BlobMissing, match=KEY):
        blobs.fetch(KEY, blobs.scratch())


def test_tenants_lie_apart(blobs: Blobs) -> None:
    adopt(blobs, b"one", "ten_1/x")
    adopt(blobs, b"two", "ten_2/x")
    assert read(blobs, 0, 3, "ten_1/x") == b"one"
    assert {key for key, _ in blobs.keys()} == {"ten_1/x", "ten_2/x"}  # noqa: SIM118  # no dict


def test_a_store_that_is_there_passes_its_check(blobs: Blobs) -> None:
    blobs.check()
    assert list(blobs.keys()) == [], "the check leaves nothing"


def test_scratch_is_private_and_new(blobs: Blobs) -> None:
    one, other = blobs.scratch(), blobs.scratch()
    assert one != other
    assert stat.S_IMODE(one.stat().st_mode) == 0o700


def test_a_folder_that_takes_nothing_fails_its_check(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.root.rmdir()
    with pytest.raises(StorageAway, match="No such file"):
        folder.check()


def test_a_file_of_a_folder_is_not_copied(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    adopt(folder, b"abc")
    assert folder.fetch(KEY, folder.scratch()) == folder.path(KEY)


def test_a_copy_is_made_once(bucket: Bucket) -> None:
    adopt(bucket, b"abc")
    inbox = bucket.scratch()
    first = bucket.fetch(KEY, inbox)
    bucket.delete(KEY)
    assert bucket.fetch(KEY, inbox) == first
    assert [path.name for path in inbox.iterdir()] == [first.name]


def test_other_bytes_than_were_stored_are_refused(bucket: Bucket) -> None:
    adopt(bucket, b"abc")
    obstore.put(
        bucket._store, KEY, b"abd", attributes={"sha256": hashlib.sha256(b"abc").hexdigest()}
    )
    inbox = bucket.scratch()
    with pytest.raises(BlobDamaged, match=KEY):
        bucket.fetch(KEY, inbox)
    assert list(inbox.iterdir()) == []


@pytest.mark.parametrize(
    ("after", "is_compared"), [("-01K", True), ("-m.safetensors", True), ("-01K.attached", False)]
)
def test_a_file_of_a_folder_is_compared_with_the_digest_in_its_key(
    tmp_path: Path, after: str, is_compared: bool
) -> None:
    folder, sha256 = Folder(tmp_path), hashlib.sha256(b"abc").hexdigest()
    key = f"ten_1/uploads/{sha256}{after}"
    adopt(folder, b"abc", key)
    assert folder.fetch(key, folder.scratch()).read_bytes() == b"abc"
    folder.path(key).write_bytes(b"abd")
    with folder.open(key) as opened:
        assert opened.digest == (sha256 if is_compared else None)
    if is_compared:
        with pytest.raises(BlobDamaged, match=key):
            folder.fetch(key, folder.scratch())
    else:
        folder.fetch(key, folder.scratch())


def test_a_bucket_that_is_away_is_named(s3_settings: dict[str, Any], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    gone = s3_settings | {"blobs_endpoint": f"http://127.0.0.1:{port}"}
    none = s3_settings | {"blobs_url": "s3://no-such-bucket"}
    for options in (gone, none):
        away = Bucket(Settings(data_dir=tmp_path, **options))
        with pytest.raises(StorageAway):
            away.check()
        for act in (adopt, lambda store, _: store.fetch(KEY, tmp_path)):
            with pytest.raises(StorageAway):
                act(away, b"abc")
    assert len(list(tmp_path.rglob("upload"))) == 2, "what was not taken stays with the caller"


def test_a_mute_bucket_fails_its_check_soon(s3_settings: dict[str, Any], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        mute = s3_settings | {"blobs_endpoint": f"http://127.0.0.1:{port}"}
        began = time.monotonic()
        with pytest.raises(StorageAway):
            Bucket(Settings(data_dir=tmp_path, **mute)).check()
        assert time.monotonic() - began < 6


def test_a_full_bucket_is_a_full_disk(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """No server of ours can be filled; the words are those of MinIO."""

    def full(*_: object, **__: object) -> None:
        raise obstore.exceptions.GenericError("Server returned 507: <Code>XMinioStorageFull</Code>")

    monkeypatch.setattr("obstore.put", full)
    with pytest.raises(OSError, match="full") as caught:
        adopt(bucket, b"abc")
    assert caught.value.errno == errno.ENOSPC


GOOD = {"blobs_url": "s3://bucket/pre/fix", "blobs_access_key": "a", "blobs_secret_key": "b"}


@pytest.mark.parametrize(
    "odd",
    [
        {"blobs_url": "bucket"},
        {"blobs_url": "file:///tmp"},
        {"blobs_url": "s3://"},
        {"blobs_url": "s3://ab"},
        {"blobs_url": "s3://UPPER"},
        {"blobs_url": "s3://key:secret@bucket"},
        {"blobs_url": "s3://bucket/../other"},
        {"blobs_url": "s3://bucket/"},
        {"blobs_url": "s3://bucket?x=1"},
        {"blobs_url": ""},
        {"blobs_endpoint": "127.0.0.1:9000"},
        {"blobs_endpoint": "ftp://host"},
        {"blobs_endpoint": "http://user:pass@host"},
        {"blobs_endpoint": "http://host/path"},
        {"blobs_endpoint": "http://host:port"},
        {"blobs_endpoint": "http://"},
        {"blobs_access_key": ""},
        {"blobs_secret_key": None},
        {"blobs_region": ""},
        {"orphan_seconds": 1},
    ],
)
def test_odd_settings_are_refused(odd: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Settings(**(GOOD | odd))


def test_good_settings_are_taken_and_keep_their_secret() -> None:
    for more in ({}, {"blobs_endpoint": "http://host:9000"}, {"blobs_endpoint": "https://s3.host"}):
        settings = Settings(**(GOOD | more))
        assert "secret_access_key" not in repr(settings)
        assert "'b'" not in repr(settings)
        _connect(settings, retries=0, seconds=1)
