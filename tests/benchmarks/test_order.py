"""One list names every benchmark, in an order in which each finds what it reads."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as everything

FOLDER = Path(everything.__file__).parent


def test_every_script_is_named_once():
    scripts = [*FOLDER.glob("*.py"), *FOLDER.glob("*/__main__.py")]
    runnable = [path for path in scripts if "\nif __name__ ==" in path.read_text()]
    names = {path.parent.name if path.stem == "__main__" else path.stem for path in runnable}
    named = everything.SHORT + everything.LONG
    assert sorted(named) == sorted(names - {"benchmarks"})


def test_what_others_read_comes_first():
    order = (everything.SHORT + everything.LONG).index
    assert order("surgery") < order("papers")
    assert order("oracles") < order("gates") < order("papers")


@pytest.mark.parametrize(("options", "last"), [([], "papers"), (["--short"], everything.SHORT[-1])])
def test_all_are_run_with_the_options_and_failures_are_named(monkeypatch, options, last):
    calls = []

    def run(command, **_):
        calls.append(command)
        return subprocess.CompletedProcess(command, command[2] == "benchmarks.audits")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["benchmarks", *options, "--data", "there"])
    with pytest.raises(SystemExit, match="failed: audits"):
        everything.main()
    assert calls[-1] == [sys.executable, "-m", f"benchmarks.{last}", "--data", "there"]
