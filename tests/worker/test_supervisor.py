"""The supervisor and its child, with work that misbehaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from structlog.testing import capture_logs

from worker.protocol import Done, Event, Failed, Progress, ProtocolError, Ready, parse
from worker.supervisor import Runner, RunnerDied

Spawn = Callable[[], Runner]
ROOT = Path(__file__).resolve().parents[2]


def order(kind: str, out: Path, **arguments: Any) -> dict[str, Any]:
    return {"kind": kind, "threads": 0, "arguments": {"out": str(out), **arguments}}


def listen(runner: Runner, seconds: float = 30.0) -> list[Event]:
    """Everything up to the last event."""
    events: list[Event] = []
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        event = runner.hear(1.0)
        if event is not None:
            events.append(event)
        if isinstance(event, Done | Failed):
            return events
    raise AssertionError(f"no end after {events}")


def last(spawn: Spawn, kind: str, **arguments: Any) -> Event:
    runner = spawn()
    runner.give(order(kind, runner.out, **arguments))
    return listen(runner)[-1]


def gone(pid: int, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


def result(event: Event) -> dict[str, Any]:
    assert isinstance(event, Done), event
    return event.result


def test_the_child_inherits_no_secret(spawn: Spawn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LETHE_PEPPER", "p" * 40)
    monkeypatch.setenv("LETHE_DATABASE_URL", "postgresql://u:secret@host/db")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    seen = result(last(spawn, "tell"))["environment"]
    # CPython adds LC_CTYPE itself when it coerces the C locale.
    assert set(seen) - {"LC_CTYPE"} <= {
        "PATH", "HOME", "TMPDIR", "LC_ALL", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE",
        "OMP_NUM_THREADS", "MKL_NUM_THREADS", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES",
        "CUDA_DEVICE_ORDER", "PYTORCH_ALLOC_CONF", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME",
    }  # fmt: skip
    assert "secret" not in " ".join(seen.values())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_child_is_confined(spawn: Spawn) -> None:
    runner = spawn()
    runner.give(order("tell", runner.out))
    seen = result(listen(runner)[-1])
    assert seen["no_new_privs"]
    assert seen["umask"] == "0077"
    assert seen["group"] == runner.pid
    assert seen["cwd"] == str(runner.scratch)
    assert seen["environment"]["HOME"] == str(runner.scratch)
    assert seen["descriptors"] <= 5, "standard three, the channel, and the listing itself"


def test_stray_prints_forge_nothing(spawn: Spawn) -> None:
    assert result(last(spawn, "shout")) == {"forged": False}


def test_progress_is_throttled_but_a_new_phase_is_always_told(spawn: Spawn) -> None:
    runner = spawn()
    runner.give(order("steps", runner.out, count=2000))
    told = [event for event in listen(runner) if isinstance(event, Progress)]
    assert len(told) < 100
    assert told[0].metrics == {"loss": None}, "JSON knows no NaN"
    assert told[-1].phase == "auditing"
    assert told[-1].rung is not None
    assert told[-1].rung.method == "ssd"


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("refuse", "model_non_finite"),
        ("starve", "out_of_memory"),
        ("overdraw", "storage_full"),
        ("bug", "internal"),
        ("not_json", "internal"),
    ],
)
def test_failures_carry_a_code_and_no_traceback(spawn: Spawn, kind: str, code: str) -> None:
    event = last(spawn, kind)
    assert isinstance(event, Failed)
    assert event.code == code
    assert not event.retryable
    assert "example.org" not in event.detail
    assert "Traceback" not in event.detail


def test_a_crash_is_a_death_with_its_last_words(spawn: Spawn) -> None:
    runner = spawn()
    runner.give(order("crash", runner.out))
    with pytest.raises(RunnerDied, match="exit status -9") as death:
        listen(runner)
    assert "last words" in death.value.stderr
    assert "last words" not in str(death.value)


def test_last_words_that_come_late_are_waited_for(
    spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_late(runner: Runner) -> None:
        runner._process.wait()
        time.sleep(0.5)
        read(runner)

    read = Runner._keep_stderr
    monkeypatch.setattr(Runner, "_keep_stderr", read_late)
    runner = spawn()
    runner.give(order("crash", runner.out))
    with pytest.raises(RunnerDied) as death:
        listen(runner)
    assert "last words" in death.value.stderr


def test_words_outside_the_protocol_end_the_runner(spawn: Spawn) -> None:
    runner = spawn()
    runner.give(order("babble", runner.out))
    with pytest.raises(RunnerDied, match="broke the protocol"):
        listen(runner)
    assert gone(runner.pid)


def test_kill_takes_the_whole_group(spawn: Spawn) -> None:
    runner = spawn()
    runner.give(order("hang", runner.out))
    grandchild = None
    while grandchild is None:
        event = runner.hear(10.0)
        if isinstance(event, Progress):
            grandchild = int(event.metrics["child"] or 0)
    assert runner.kill() == -signal.SIGTERM
    assert gone(grandchild)


def test_close_removes_the_scratch_folder(spawn: Spawn) -> None:
    runner = spawn()
    (runner.out / "file").write_text("weights")
    runner.close()
    assert not runner.scratch.exists()


def test_a_runner_that_no_signal_ends_holds_nobody(
    spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = spawn()

    def wait(timeout: float | None = None) -> int:
        assert timeout is not None, "it would wait for ever"
        raise subprocess.TimeoutExpired("runner", timeout)

    monkeypatch.setattr(runner._process, "wait", wait)
    with capture_logs() as logs:
        assert runner.kill() is None
        runner.close()
    assert ("error", "runner_left") in [(log["log_level"], log["event"]) for log in logs]
    assert not runner.scratch.exists()


LEAVING = """
import pathlib, subprocess, sys, time
code = "import time; time.sleep(600)"
child = subprocess.Popen([sys.executable, "-S", "-c", code], start_new_session=True)
pathlib.Path("draft").write_text(str(child.pid))
pathlib.Path("draft").rename("child")
time.sleep(600)
"""


def test_a_pipe_that_somebody_else_holds_open_holds_nobody(
    spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.supervisor.PIPE_SECONDS", 0.1)
    command = [sys.executable, "-S", "-c", LEAVING]
    monkeypatch.setattr("worker.supervisor.sandbox.command", lambda *_, **__: command)
    runner = spawn()
    while not (runner.scratch / "child").exists():
        time.sleep(0.01)
    child = int((runner.scratch / "child").read_text())
    closing = threading.Thread(target=runner.close, daemon=True)
    closing.start()
    closing.join(20)
    was_held = closing.is_alive()
    os.kill(child, signal.SIGKILL)
    closing.join(20)
    assert not was_held
    assert not runner.scratch.exists()
    for listener in runner._listeners:
        listener.join(20)
    runner.close()


def test_a_runner_waits_ready_for_its_order(spawn: Spawn) -> None:
    runner = spawn()
    assert isinstance(runner.hear(20.0), Ready)
    assert runner.ready
    runner.kill()
    assert not runner.ready


PARENT = """
import sys, time, pathlib, tempfile
sys.path.insert(0, {root!r})
from worker.supervisor import Runner
from worker.protocol import Progress
runner = Runner(pathlib.Path(tempfile.mkdtemp(dir={tmp!r})), module="tests.worker.stand_in")
runner.give({{"kind": "hang", "threads": 0, "arguments": {{"out": "x"}}}})
while not isinstance(runner.hear(20.0), Progress):
    pass
print(runner.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="PDEATHSIG")
def test_the_runner_dies_with_a_killed_supervisor(tmp_path: Path) -> None:
    code = PARENT.format(root=str(ROOT), tmp=str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        runner = int(parent.stdout.readline())
        assert psutil.pid_exists(runner)
        parent.kill()
    assert gone(runner)


def test_the_end_of_its_input_ends_a_working_runner(tmp_path: Path) -> None:
    # Without our PDEATHSIG reaching it: the parent lives on and only closes the pipe.
    with subprocess.Popen(
        [sys.executable, "-m", "tests.worker.stand_in", str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    ) as runner:
        assert runner.stdin is not None
        assert runner.stdout is not None
        runner.stdin.write(b'{"kind":"hang","threads":0,"arguments":{"out":"x"}}\n')
        runner.stdin.flush()
        assert b"ready" in runner.stdout.readline()
        child = int(parse(runner.stdout.readline()).metrics["child"])  # type: ignore[union-attr,arg-type]
        runner.stdin.close()
        assert runner.wait(10) == 70
    os.kill(child, signal.SIGKILL)


def test_a_runner_whose_parent_is_another_leaves_at_once() -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "tests.worker.stand_in", "1"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        check=False,
    )
    assert answer.returncode == 70
    assert answer.stdout == b""


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b'{"event":"other"}',
        b'{"event":"ready","extra":1}',
        b'{"event":"progress","phase":"a","progress":2}',
        b'{"event":"progress","phase":"a","progress":NaN}',
        b'{"event":"progress","phase":"<script>","progress":0}',
        b'{"event":"failed","code":"Not A Code","detail":"","retryable":false}',
        b'{"event":"failed","code":"x","detail":"' + b"y" * 2000 + b'","retryable":false}',
    ],
)
def test_a_line_outside_the_protocol_is_refused(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse(line)


def test_a_line_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.protocol.MAX_LINE_BYTES", 10)
    with pytest.raises(ProtocolError, match="over 10 bytes"):
        parse(b'{"event":"ready"}')
