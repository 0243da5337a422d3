"""Folders of living and of dead processes."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from app.store.blobs import Folder
from app.store.homes import Home, remove_leftovers

ROOT = Path(__file__).resolve().parents[2]
OTHER = """
import sys, os, pathlib
sys.path.insert(0, {root!r})
from app.store.blobs import Folder
from app.store.homes import Home
home = Home(Folder(pathlib.Path({data!r})))
(home.path / "weights").write_text("personal")
print(home.path, flush=True)
sys.stdin.read()
os.kill(os.getpid(), 9)
"""


def test_only_the_folders_of_the_dead_are_removed(tmp_path: Path) -> None:
    code = OTHER.format(root=str(ROOT), data=str(tmp_path))
    blobs = Folder(tmp_path)
    with Home(blobs) as mine:
        with subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as other:
            assert other.stdout is not None
            folder = Path(other.stdout.readline().strip())
            assert remove_leftovers(tmp_path) == 0
            assert (folder / "weights").exists()
        assert remove_leftovers(tmp_path) == 1
        assert not folder.exists()
        assert mine.exists()
    assert not mine.exists()


def test_processes_that_start_together_share_the_leftovers(tmp_path: Path) -> None:
    blobs, count = Folder(tmp_path), 300
    for _ in range(count):
        leave(blobs)
    removed: list[int] = []
    together = threading.Barrier(8)

    def start() -> None:
        together.wait()
        removed.append(remove_leftovers(tmp_path))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(removed) == 8, "one of them failed"
    assert sum(removed) == count
    assert not list((tmp_path / "scratch").iterdir())


def leave(blobs: Folder) -> Path:
    """A folder as its process leaves it when it is killed."""
    home = Home(blobs)
    fcntl.flock(home._lock, fcntl.LOCK_UN)
    home._lock.close()
    return home.path


def test_what_a_cut_removal_leaves_is_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = leave(Folder(tmp_path))
    for name in ("a", "z"):
        (folder / name).mkdir()
        (folder / name / "weights").write_text("personal")
    whole = shutil.rmtree

    def cut(path: Path) -> None:
        if path.name in ("z", folder.name):
            raise PermissionError(path)
        whole(path)

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", cut)
        with capture_logs() as logs:
            assert remove_leftovers(tmp_path) == 0
    assert [line["event"] for line in logs] == ["scratch_leftover_kept"]
    assert remove_leftovers(tmp_path) == 1
    assert not folder.exists()
