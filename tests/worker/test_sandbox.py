"""The walls around a runner: what it cannot do, what it still can, and what is said about them."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.settings import Settings
from app.store import jobs, references
from app.store import session as sessions
from app.store.jobs import Renewal
from app.store.session import transaction
from tests import factories
from worker import confine, sandbox
from worker.attempt import accompany, await_walls
from worker.lease import Heartbeat
from worker.limits import Limits, OverLimit, of
from worker.protocol import Done
from worker.station import Station
from worker.supervisor import Runner, RunnerDied

Spawn = Callable[..., Runner]
LANDLOCK_2 = (
    "real = walls._libc.syscall;"
    "walls._libc.syscall = lambda n, *a: 2 if n == 444 and a[0] is None else real(n, *a)"
)
"""A kernel whose Landlock lets a file be cut off that may only be read."""
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="Landlock, seccomp, namespaces")


def order(kind: str, runner: Runner, limits: Limits | None = None, **more: Any) -> dict[str, Any]:
    bound = {} if limits is None else {"limits": limits.for_child()}
    return {"kind": kind, "threads": 0, "arguments": {"out": str(runner.out), **more}, **bound}


def outcome(runner: Runner) -> dict[str, Any]:
    while True:
        event = runner.hear(60.0)
        assert event is not None
        if event.event in ("done", "failed"):
            assert isinstance(event, Done), event
            return event.result


@LINUX
@pytest.mark.parametrize("together", [False, True])
def test_nothing_gets_out(
    spawn: Spawn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, together: bool
) -> None:
    """Nor where processes may talk to each other: they meet nobody else."""
    monkeypatch.setenv("LETHE_PEPPER", "p" * 40)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "secret").write_text("kept")
    runner = spawn(together=together)
    (runner.inbox / "source").write_text("lent")
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(elsewhere / "socket"))
        unix.listen()
        port = server.getsockname()[1]
        runner.give(order("escape", runner, elsewhere=str(elsewhere), port=port))
        ends = outcome(runner)["ends"]
    refused = {"EPERM", "EACCES", "EXDEV", "failed"}
    passed = {name: end for name, end in ends.items() if end not in refused}
    assert passed == ({"tcp": "ECONNREFUSED", "netlink": "done"} if together else {})
    assert len(ends) > 20
    assert (elsewhere / "secret").read_text() == "kept"
    assert (runner.inbox / "source").read_text() == "lent"
    assert sandbox.level(runner.walls) in ("L1", "L2")


@LINUX
def test_work_goes_on_inside(spawn: Spawn) -> None:
    runner = spawn()
    source = runner.inbox / "source"
    source.write_text("lent")
    runner.give(order("work", runner, source=str(source)))
    assert outcome(runner) == {"read": "lent"}
    runner.close()
    assert not runner.scratch.exists()
    assert not runner.inbox.exists()


@LINUX
@pytest.mark.parametrize(
    ("change", "left"),
    [
        ("walls.landlock = lambda **_: True", {"network", "signals", "privileges"}),
        ("walls.seccomp = lambda **_: True", {"signals", "privileges"}),
        (LANDLOCK_2, {"network", "signals", "privileges"}),
    ],
)
def test_a_missing_wall_is_noticed(tmp_path: Path, change: str, left: set[str]) -> None:
    """What is reported was tried: a kernel that builds a wall in name only earns no level."""
    (tmp_path / "home").mkdir()
    code = (
        f"import json, sys; from worker import confine, walls; {change};"
        "_, held = confine.enter(int(sys.argv[1])); print(json.dumps(held), file=sys.stderr)"
    )
    command = [sys.executable, "-P", "-c", code, *sandbox.command("x")[5:6]]
    home = tmp_path / "home"
    tried = subprocess.run(
        command, cwd=home, env=sandbox.environment(home), capture_output=True, text=True, check=True
    )
    held = set(json.loads(tried.stderr))
    assert held == left, "Landlock stops signals and TCP, too, but not every socket"
    assert sandbox.level(held) == "L0"


@pytest.mark.parametrize(
    ("walls", "level"),
    [
        ([], "L0"),
        (["container"], "L0"),
        (["privileges", "network", "files"], "L0"),
        (["privileges", "network", "files", "signals"], "L1"),
        (["privileges", "network", "files", "signals", "container"], "L2"),
    ],
)
def test_levels(walls: list[str], level: str) -> None:
    assert sandbox.level(walls) == level


def test_a_station_below_the_minimum_does_not_start(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.sandbox.L1_WALLS", {"a wall that nobody builds"})
    station = Station()
    station.close()
    assert station.sandbox == "L0"
    sessions.configure(settings.model_copy(update={"sandbox_minimum": "L1"}))
    with pytest.raises(SystemExit, match="LETHE_SANDBOX_MINIMUM asks for L1"):
        Station()


def follow(runner: Runner, limits: Limits) -> None:
    beat = Heartbeat(lambda _: Renewal(alive=True, cancel=False), 60.0)
    with beat:
        accompany(
            runner,
            beat,
            closing=threading.Event(),
            stall_seconds=60.0,
            settled=lambda: None,
            limits=limits,
        )


def test_a_runner_walled_in_too_little_gets_no_work(settings: Settings, spawn: Spawn) -> None:
    sessions.configure(settings.model_copy(update={"sandbox_minimum": "L2"}))
    runner = spawn()
    beat = Heartbeat(lambda _: Renewal(alive=True, cancel=False), 60.0)
    with beat, pytest.raises(RunnerDied, match="walled in below L2"):
        await_walls(runner, beat, 60.0)
    sessions.configure(settings.model_copy(update={"sandbox_minimum": "L0"}))


@pytest.mark.parametrize(
    ("kind", "limits", "code"),
    [
        ("spin", Limits(1.0, 1 << 40), "out_of_time"),
        ("fill", Limits(60.0, 200 << 20), "out_of_memory"),
        ("share", Limits(60.0, 200 << 20), "out_of_memory"),
        ("fork", Limits(60.0, 200 << 20), "out_of_memory"),
        ("hoard", Limits(60.0, 1 << 40, scratch=20 << 20), "output_too_large"),
        ("litter", Limits(60.0, 1 << 40, scratch=20 << 20), "output_too_large"),
    ],
)
def test_a_runner_over_its_limit(
    settings: Settings, spawn: Spawn, kind: str, limits: Limits, code: str
) -> None:
    runner = spawn()
    runner.give(order(kind, runner, limits))
    with pytest.raises(OverLimit) as over:
        follow(runner, limits)
    assert over.value.code == code


@LINUX
def test_the_kernel_watches_the_memory_of_a_conversion(settings: Settings, spawn: Spawn) -> None:
    runner = spawn()
    limits = Limits(60.0, 1 << 40, address_space=200 << 20)
    runner.give(order("fill", runner, limits))
    while (event := runner.hear(60.0)) is not None and event.event != "failed":
        pass
    assert event is not None
    assert event.code == "out_of_memory"


def test_a_file_of_a_conversion_is_only_so_large(settings: Settings, spawn: Spawn) -> None:
    runner = spawn()
    limits = Limits(60.0, 1 << 40, file_size=1 << 20)
    runner.give(order("flood", runner, limits))
    assert outcome(runner) == {"end": "EFBIG", "size": 1 << 20}


def test_a_file_that_is_too_large_fails_the_job(settings: Settings, spawn: Spawn) -> None:
    runner = spawn()
    limits = Limits(60.0, 1 << 40, file_size=1 << 20)
    runner.give(order("overflow", runner, limits))
    while (event := runner.hear(60.0)) is not None and event.event != "failed":
        pass
    assert event is not None
    assert (event.code, event.retryable) == ("output_too_large", False)


def test_room_on_the_disk_follows_the_files_of_the_job(settings: Settings) -> None:
    with transaction() as session:
        tenant = factories.a_tenant(session)
        model = factories.a_model(session, tenant)
        factories.published(session, tenant, model.id)
        job_id = references.queue_bank(session, tenant, model.id, {"models": 2, "seed": 1}).id
    with transaction() as session:
        claim = jobs.claim(session, job_id, "w")
    assert claim is not None
    assert claim.dataset is not None
    own = settings.max_model_bytes + claim.dataset.size_bytes
    assert of(claim).scratch == of(claim).file_size == (4 << 30) + 16 * own
    sessions.configure(settings.model_copy(update={"max_scratch_bytes": 1000}))
    assert of(claim).scratch == of(claim).file_size == 1000


def test_limits_are_only_ever_lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("resource.getrlimit", lambda _: (10, 100))
    monkeypatch.setattr("resource.setrlimit", lambda *limits: asked.append(limits))
    confine._lower(0, 4096)
    assert asked == [(0, (100, 100))]
