"""Folders of living and of dead workers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from app.store.blobs import Folder
from worker.home import Home, remove_leftovers

ROOT = Path(__file__).resolve().parents[2]
OTHER = """
import sys, os, pathlib
sys.path.insert(0, {root!r})
from app.store.blobs import Folder
from worker.home import Home
home = Home(Folder(pathlib.Path({data!r})))
(home.path / "weights").write_text("personal")
print(home.path, flush=True)
sys.stdin.read()
os.kill(os.getpid(), 9)
"""


def test_only_the_folders_of_the_dead_are_removed(tmp_path: Path) -> None:
    code = OTHER.format(root=str(ROOT), data=str(tmp_path))
    blobs = Folder(tmp_path)
    mine, upload = Home(blobs), blobs.scratch()
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        folder = Path(other.stdout.readline().strip())
        assert remove_leftovers(tmp_path / "scratch") == 0
        assert (folder / "weights").exists()
    assert remove_leftovers(tmp_path / "scratch") == 1
    assert not folder.exists()
    assert mine.path.exists()
    assert upload.exists(), "an upload in progress belongs to somebody else"
    mine.close()
    assert not mine.path.exists()
