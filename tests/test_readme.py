"""The README keeps its word: its tour runs, and its tree names every source file."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from app.settings import Settings
from worker.demo.service import embedded

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def _block(mark: str) -> str:
    found = re.search(rf"<!-- {mark}:.*?-->\n```\w+\n(.*?)```", README, re.DOTALL)
    assert found, f"no block marked {mark}"
    return found[1]


@pytest.mark.timeout(900)  # a busy machine takes its time
@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine")
def test_the_tour_of_the_readme_runs(tmp_path: Path) -> None:
    data = tmp_path / "service"
    script = _block("tour").replace(".venv/bin/python", "python")
    with embedded(Settings(data_dir=data, torch_threads=1)) as service:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=tmp_path,
            env={
                "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
                "PYTHONPATH": str(ROOT),
                "HOME": str(tmp_path),
                "OMP_NUM_THREADS": "1",
                "URL": service.url,
                "LETHE_DATA_DIR": str(data),
            },
            capture_output=True,
            text=True,
            timeout=840,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    digest = next(line for line in lines if line.startswith("sha256:")).removeprefix("sha256:")
    assert any(line.startswith(digest) for line in lines), "the download has another digest"
    assert lines[-1] == "410", f"version 1 is not withdrawn: {done.stdout}"


def test_the_tree_names_every_source_file() -> None:
    named = set(re.findall(r"^(\S+\.py) ", _block("tree"), re.MULTILINE))
    files = {
        str(path.relative_to(ROOT))
        for room in ("app", "core", "worker", "migrations", "benchmarks")
        for path in (ROOT / room).rglob("*.py")
        if path.stat().st_size and "__pycache__" not in path.parts
    }
    assert named == files
