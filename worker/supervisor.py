"""The parent's side of a runner: spawn it, listen to it, end it. Free of torch.

A runner gets an empty environment, its own session, its own scratch folder, and one order. On Linux
the kernel kills it when the *thread* that spawned it ends, so spawn from a thread that outlives it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

import psutil
import structlog

from worker import protocol, sandbox
from worker.protocol import Event, ProtocolError, Ready

TERM_SECONDS = 5.0
"""Between asking a runner to end and killing it."""

KILL_SECONDS = 10.0
"""After killing it and all that it started, until they are gone."""

PIPE_SECONDS = 5.0
"""After its end, until nobody can write into its pipes any more."""

_OWN_MEMORY = ("RssAnon:", "RssShmem:")
"""Lines of ``/proc/PID/status``, in KiB; files are in a third."""

_BLOCK_BYTES = 4096
_STDERR_LINES = 40
_Ended = ProtocolError | None
_log = structlog.get_logger(__name__)


class RunnerDied(Exception):
    """The runner ended, or had to be ended, before it said how its work went."""

    def __init__(self, reason: str, stderr: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.stderr = stderr
        """The end of what it wrote there; for the log, never for the API."""


class Runner:
    """One child process, used for one order, then discarded.

    Args:
        scratch: a private folder that belongs to this runner; removed by ``close``.
        threads: threads of its numeric libraries; 0 leaves their choice.
        module: what to run; tests put a stand-in here.
        together: whether several processes may have to train together.

    Raises:
        OSError: if it cannot be started.
    """

    def __init__(
        self,
        scratch: Path,
        *,
        threads: int = 0,
        module: str = "worker.runner",
        together: bool = False,
    ) -> None:
        self.scratch = scratch
        self.out = scratch / "out"
        self.out.mkdir(mode=0o700)
        self.inbox = scratch.with_name(f"{scratch.name}.in")
        """What is lent to it; it may read there and not write."""
        self.inbox.mkdir(mode=0o700)
        self.walls: list[str] = []
        """Those that it found to hold, once it is ready."""
        self._heard: queue.Queue[Event | _Ended] = queue.Queue(maxsize=64)
        self._ready = threading.Event()
        self._closed = threading.Event()
        self._stderr: deque[bytes] = deque(maxlen=_STDERR_LINES)
        self._process = subprocess.Popen(  # noqa: S603  # our own interpreter and module
            sandbox.command(module, together=together),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=scratch,
            env=_environment(scratch, threads),
            start_new_session=True,
            umask=0o077,
        )
        self._listeners = [
            threading.Thread(target=listen, name="runner", daemon=True)
            for listen in (self._listen, self._keep_stderr)
        ]
        try:
            for listener in self._listeners:
                listener.start()
        except RuntimeError as error:
            self.close()
            raise OSError(errno.EAGAIN, "no thread can be started") from error

    @property
    def pid(self) -> int:
        """Process id, which is also its group and session."""
        return self._process.pid

    @property
    def ready(self) -> bool:
        """Whether it waits for its order with everything imported."""
        return self._ready.is_set() and self.alive

    @property
    def memory(self) -> int:
        """Bytes of memory that it and all that it started hold: resident, and no files.

        What several of them share counts for each.
        """
        return sum(_memory(pid) for pid in psutil.pids() if _session(pid) == self.pid)

    def written(self, enough: int) -> int:
        """Bytes of all files in its scratch folder; counting ends above ``enough``.

        Each takes at least a block, so that very many empty ones count, too. A file that is open
        and has no name any more is not found.
        """
        total = 0
        for folder, _, names in os.walk(self.scratch):
            total += _BLOCK_BYTES
            for name in names:
                with contextlib.suppress(OSError):  # gone meanwhile
                    total += max((Path(folder) / name).lstat().st_blocks * 512, _BLOCK_BYTES)
                if total > enough:
                    return total
        return total

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        try:
            return psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    @property
    def stderr(self) -> str:
        """The end of what it wrote there; for the log, never for the API."""
        return b"".join(self._stderr).decode(errors="replace")

    def give(self, order: dict[str, Any]) -> None:
        """Hand over the order; it may still be importing.

        Raises:
            RunnerDied: if it is gone.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise self._death("gone before its order") from error

    def hear(self, timeout: float) -> Event | None:
        """Return the next event, or None if there is none within ``timeout`` seconds.

        Raises:
            RunnerDied: if the runner ended, or said something it may not say.
        """
        try:
            event = self._heard.get(timeout=timeout)
        except queue.Empty:
            return None
        if isinstance(event, ProtocolError):
            raise self._death(f"broke the protocol: {event}")
        if event is None:
            raise self._death("ended")
        return event

    def interrupt(self) -> None:
        """Ask the runner itself to keep the state of its training and to end."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)

    def kill(self, term_seconds: float = TERM_SECONDS) -> int | None:
        """End the whole process group: ask, wait, kill.

        Returns:
            The exit status; None if it hangs in the kernel, which no signal ends. It does nothing
            of its own any more.
        """
        self._closed.set()
        if self._process.returncode is None:
            # Nothing is reaped before the last signal, so the group id is still ours.
            self._signal(signal.SIGTERM)
            deadline = time.monotonic() + term_seconds
            while self.alive and time.monotonic() < deadline:
                time.sleep(0.02)
            self._signal(signal.SIGKILL)
            deadline = time.monotonic() + KILL_SECONDS
            while self.memory and time.monotonic() < deadline:
                time.sleep(0.01)
            try:
                self._process.wait(KILL_SECONDS)
            except subprocess.TimeoutExpired:
                _log.error("runner_left", pid=self.pid)
        return self._process.returncode

    def close(self) -> None:
        """End it if it still runs, and remove its scratch folder."""
        self.kill()
        _close(self._process.stdin)
        pipes = (self._process.stdout, self._process.stderr)
        for pipe, listener in zip(pipes, self._listeners, strict=True):
            if listener.is_alive():
                listener.join(PIPE_SECONDS)
            if listener.is_alive():
                # Something else holds the other end, and closing ours would wait for it, too.
                _log.warning("pipe_left", pid=self.pid)
            else:
                _close(pipe)
        for folder in (self.scratch, self.inbox):
            shutil.rmtree(folder, ignore_errors=True)
            if folder.exists():
                _log.error("scratch_left", scratch=folder.name)

    def _death(self, reason: str) -> RunnerDied:
        status = self.kill()
        # Its last words may still be in the pipe; whoever else holds that is waited for briefly.
        self._listeners[-1].join(PIPE_SECONDS)
        return RunnerDied(f"runner {reason} (exit status {status})", self.stderr)

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):
            # macOS answers EPERM for a group of zombies; there is nobody left to signal.
            return

    def _listen(self) -> None:
        ended: _Ended = None
        try:
            while (line := self._read_line()) is not None:
                event = protocol.parse(line)
                if isinstance(event, Ready) and not self._ready.is_set():
                    self.walls = event.walls
                    self._ready.set()
                self._pass_on(event)
        except ProtocolError as error:
            ended = error
        self._pass_on(ended)

    def _read_line(self) -> bytes | None:
        """Return one line, or what is over the limit of it; None at the end."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline(protocol.MAX_LINE_BYTES + 1)
        cut_off = not line.endswith(b"\n") and len(line) <= protocol.MAX_LINE_BYTES
        return None if cut_off else line

    def _pass_on(self, event: Event | _Ended) -> None:
        """Queue an event; wait while nobody takes them, so that a flood stops at the pipe."""
        while not self._closed.is_set():
            try:
                self._heard.put(event, timeout=1.0)
            except queue.Full:
                continue
            return

    def _keep_stderr(self) -> None:
        assert self._process.stderr is not None
        while line := self._process.stderr.readline(1024):
            self._stderr.append(line)


def _session(pid: int) -> int | None:
    """Session of a process, which a runner can't leave; None if the process is gone."""
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return None


def _memory(pid: int) -> int:
    try:
        if sys.platform != "linux":
            return int(psutil.Process(pid).memory_info().rss)
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (psutil.Error, FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(_OWN_MEMORY))


def _environment(scratch: Path, threads: int) -> dict[str, str]:
    """Everything the child gets to know: no secret, no address, no setting of ours."""
    environment = sandbox.environment(scratch)
    if threads > 0:
        environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    return environment


def _close(pipe: Any) -> None:
    try:
        pipe.close()
    except BrokenPipeError:
        return  # an order that was never read; the process is gone
