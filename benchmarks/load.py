"""A load generator in a process of its own: raw HTTP/1.1 over kept connections, little overhead.

With a rate, calls arrive at constant distance whatever the service does (open loop), and latency
counts from the moment a call was due, so a stall is charged to every call that waited behind it.
Without a rate, every connection calls again as soon as it was answered (closed loop).
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import random
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Plan:
    """What to send.

    Args:
        port: of the service on this machine.
        key: API key.
        model: model whose records are to be forgotten.
        record_ids: training records to draw from.
        seconds: how long calls are sent.
        rate: calls per second; None for a closed loop.
        connections: kept open throughout.
        read_share: share of calls that only read.
        calls: a closed loop ends after so many, whatever the time.
        cancels: every new request is cancelled again, so that what waits does not grow.
        records_per_request: drawn from ``record_ids``.
        policy: of every request.
        seeds: requests of one seed may share a job; None has the service choose.
    """

    port: int
    key: str
    model: str
    record_ids: list[str]
    seconds: float
    rate: float | None = 50.0
    connections: int = 50
    read_share: float = 0.8
    seed: int = 0
    calls: int | None = None
    cancels: bool = False
    records_per_request: int = 5
    policy: str = "standard"
    seeds: int | None = None


@dataclass
class Outcome:
    """Latencies in seconds, and everything that was not a 2xx answer."""

    reads: list[float] = field(default_factory=list)
    writes: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    lateness: list[float] = field(default_factory=list)
    """From the moment a call was due to the moment the generator looked at it."""
    seconds: float = 0.0


def run(plan: Plan) -> Outcome:
    """Carry out a plan in a fresh process and return what it saw."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(run_here, plan).result()


def run_here(plan: Plan) -> Outcome:
    """Carry out a plan in this process."""
    return asyncio.run(_Generator(plan).run())


class _Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def call(self, message: bytes) -> tuple[int, bytes]:
        self._writer.write(message)
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = 0
        for line in head.split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        return int(head[9:12]), await self._reader.readexactly(length)


class _Generator:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.random = random.Random(plan.seed)
        self.outcome = Outcome()
        self.left = plan.calls
        self.known: list[dict[str, Any]] = []
        self.asked = 0
        self.idle: asyncio.Queue[_Connection] = asyncio.Queue()

    async def run(self) -> Outcome:
        for _ in range(self.plan.connections):
            streams = await asyncio.open_connection("127.0.0.1", self.plan.port)
            self.idle.put_nowait(_Connection(*streams))
        await self._call(time.monotonic(), is_read=False)
        self.outcome = Outcome(errors=self.outcome.errors)
        start = time.monotonic()
        if self.plan.rate is None:
            await asyncio.gather(*(self._again(start) for _ in range(self.plan.connections)))
        else:
            await self._arrivals(start, self.plan.rate)
        while self.plan.cancels and self.known:
            await self._call(time.monotonic(), is_read=False, is_last=True)
        self.outcome.seconds = time.monotonic() - start
        return self.outcome

    async def _arrivals(self, start: float, rate: float) -> None:
        calls = []
        for number in range(int(rate * self.plan.seconds)):
            due = start + number / rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            calls.append(asyncio.create_task(self._call(due, self._draw())))
        await asyncio.gather(*calls)

    async def _again(self, start: float) -> None:
        while (now := time.monotonic()) < start + self.plan.seconds and self.left != 0:
            if self.left is not None:
                self.left -= 1
            await self._call(now, self._draw())

    def _draw(self) -> bool:
        return self.random.random() < self.plan.read_share

    async def _call(self, due: float, is_read: bool, is_last: bool = False) -> None:
        self.outcome.lateness.append(time.monotonic() - due)
        connection = await self.idle.get()
        try:
            status, body = await connection.call(self._read() if is_read else self._write(is_last))
        except (OSError, asyncio.IncompleteReadError) as error:
            # The connection is gone; the call is an error, and the rest share what is left.
            self.outcome.errors.append(repr(error))
            return
        (self.outcome.reads if is_read else self.outcome.writes).append(time.monotonic() - due)
        self.idle.put_nowait(connection)
        if not 200 <= status < 300:
            self.outcome.errors.append(f"{status} {body[:300].decode(errors='replace')}")
        elif not is_read and (made := json.loads(body))["status"] != "cancelled":
            self.known.append(made)

    def _read(self) -> bytes:
        request = self.random.choice(self.known)
        paths = (
            f"/unlearn-requests/{request['id']}",
            f"/jobs/{request['job_id']}",
            f"/models/{self.plan.model}",
            "/unlearn-requests?limit=20",
        )
        return self._message("GET", self.random.choice(paths))

    def _write(self, is_last: bool) -> bytes:
        if self.plan.cancels and (is_last or len(self.known) > self.plan.connections):
            return self._message("DELETE", f"/unlearn-requests/{self.known.pop(0)['id']}")
        drawn = self.random.sample(self.plan.record_ids, self.plan.records_per_request)
        body: dict[str, Any] = {
            "model": self.plan.model,
            "forget": {"type": "record_ids", "record_ids": drawn},
            "policy": self.plan.policy,
        }
        if self.plan.seeds is not None:
            body["seed"] = self.asked % self.plan.seeds
            self.asked += 1
        return self._message("POST", "/unlearn-requests", json.dumps(body).encode())

    def _message(self, method: str, path: str, body: bytes = b"") -> bytes:
        lines = [
            f"{method} {path} HTTP/1.1",
            "Host: 127.0.0.1",
            f"Authorization: Bearer {self.plan.key}",
        ]
        if body:
            lines += [
                "Content-Type: application/json",
                f"Content-Length: {len(body)}",
                f"Idempotency-Key: {self.random.getrandbits(128):032x}",
            ]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
