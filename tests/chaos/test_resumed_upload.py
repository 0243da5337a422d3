"""An upload by a tus client, through ``kill -9`` of the service, to a dataset."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tusclient.client import TusClient

from tests.e2e.stack import Embedded

RECORDS, WIDTH = 1500, 1024
MIB = 2**20


def parquet(path: Path) -> Path:
    """About 6 MiB of records that do not compress."""
    numbers = np.random.default_rng(0).standard_normal((RECORDS, WIDTH), dtype=np.float32)
    table = pa.table(
        {
            "id": [f"r{n}" for n in range(RECORDS)],
            "label": [n % 2 for n in range(RECORDS)],
            "features": [*numbers],
        }
    )
    pq.write_table(table, path)
    return path


@pytest.mark.chaos
def test_it_goes_on_after_a_kill(tmp_path: Path) -> None:
    file = parquet(tmp_path / "records.parquet")
    digest = f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"
    service = Embedded(tmp_path, spare_runner=False)
    service.start()
    try:
        headers = {"Authorization": f"Bearer {service.key}"}
        client = TusClient(f"{service.url}/uploads", headers=headers)
        with file.open("rb") as stream:
            first = client.uploader(file_stream=stream, chunk_size=MIB)
            first.upload(stop_at=2 * MIB)
            breaks_off(service, str(first.url), file, headers)
            service.start()
            second = client.uploader(
                file_stream=stream, url=first.url, chunk_size=MIB, upload_checksum=True
            )
            assert second.offset == 2 * MIB, "what was not made safe does not count"
            second.upload()
        with httpx.Client(base_url=service.url, headers=headers, timeout=60) as http:
            upload_id = str(first.url).rpartition("/")[2]
            found = http.get(f"/uploads/{upload_id}").json()
            assert (found["status"], found["digest"]) == ("received", digest)
            source = {"type": "upload", "id": upload_id}
            made = http.post("/datasets", json={"name": "d", "source": source}).json()
            assert made["digest"] == digest
            done = http.get(f"/datasets/{made['id']}", headers={"Prefer": "wait=50"}).json()
            assert (done["status"], done["num_train"]) == ("ready", RECORDS)
    finally:
        service.stop()


def breaks_off(service: Embedded, url: str, file: Path, headers: dict[str, str]) -> None:
    """Kill the service in the middle of a call whose bytes are on disk already, but not safe."""
    piece = headers | {
        "Tus-Resumable": "1.0.0",
        "Content-Type": "application/offset+octet-stream",
        "Upload-Offset": str(2 * MIB),
    }
    partial = service.data_dir / "partial"

    def rest() -> Iterator[bytes]:
        with file.open("rb") as opened:
            opened.seek(2 * MIB)
            yield opened.read(2 * MIB)
        until = time.monotonic() + 30
        while sum(f.stat().st_size for f in partial.glob("*/*")) < 3 * MIB:
            assert time.monotonic() < until
            time.sleep(0.01)
        service.kill("serve")
        yield bytes(1)

    with pytest.raises(httpx.TransportError):
        httpx.patch(url, content=rest(), headers=piece, timeout=60)
