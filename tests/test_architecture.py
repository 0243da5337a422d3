"""The rules of the house that a program can check."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from app.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("app", "core", "worker")
CODE = (*ROOMS, "migrations", "benchmarks", "tests")
SETTINGS = Path("app/settings.py")
SESSION = Path("app/store/session.py")

CONVERTER = Path("core/convert.py")
"""The one file that may unpickle: weights alone, in the sandbox, behind its own checks."""

UNSAFE_CALLS = {
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "joblib.load",
    "torch.load",
    "torch.hub.load",
    "torch.jit.load",
    "torch.export.load",
    "torch.package.PackageImporter",
}
UNSAFE_KEYWORDS = {("weights_only", False), ("trust_remote_code", True), ("allow_pickle", True)}


def files(*rooms: str) -> list[Path]:
    """Python files of these folders, relative to the root."""
    return sorted(path.relative_to(ROOT) for room in rooms for path in (ROOT / room).rglob("*.py"))


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """Every syntax node of a file."""
    return tuple(ast.walk(ast.parse((ROOT / path).read_text())))


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Calls in a file with their dotted names."""
    for node in nodes(path):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def environment_reads(path: Path) -> list[str]:
    """Expressions in a file that reach the environment."""
    names = {"environ", "environb", "getenv", "getenvb"}
    found = [
        ast.unparse(node)
        for node in nodes(path)
        if isinstance(node, ast.Attribute) and node.attr in names
    ]
    imported = [
        alias.name
        for node in nodes(path)
        if isinstance(node, ast.ImportFrom) and node.module == "os"
        for alias in node.names
    ]
    return found + [name for name in imported if name in names]


def unsafe_calls(path: Path) -> list[str]:
    """Calls in a file that could run code out of a file of weights."""
    found = []
    for name, call in calls(path):
        keywords = {
            (keyword.arg, keyword.value.value)
            for keyword in call.keywords
            if isinstance(keyword.value, ast.Constant) and isinstance(keyword.value.value, bool)
        }
        is_converter = name == "torch.load" and ("weights_only", True) in keywords
        if is_converter and path == CONVERTER:
            continue
        if name in UNSAFE_CALLS or keywords & UNSAFE_KEYWORDS:
            found.append(ast.unparse(call))
    return found


def setting_rows() -> list[str]:
    """Rows that docs/settings.md must hold, in the order of the settings."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = json.dumps(field.default, default=str).strip('"')
        shown = "" if field.default in ("", None) else f"`{default}`"
        rows.append(f"| `LETHE_{name.upper()}` | {shown} | {field.description} |")
    return rows


def test_imports_keep_their_contracts() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_only_the_session_module_opens_sessions_and_commits() -> None:
    found = [
        path
        for path in files(*ROOMS)
        for name, _ in calls(path)
        if re.search(r"\.(commit|begin)$|^(orm\.)?(Session|sessionmaker)$", name)
    ]
    assert set(found) == {SESSION}, found


def test_only_the_settings_read_the_environment() -> None:
    found = {p: reads for p in files(*ROOMS) if (reads := environment_reads(p))}
    assert set(found) <= {SETTINGS}, found


def test_no_call_can_run_code_out_of_weights() -> None:
    found = {p: bad for p in files(*ROOMS, "migrations", "benchmarks") if (bad := unsafe_calls(p))}
    assert found == {}


@pytest.mark.parametrize(
    "source",
    [
        "torch.load('x')",
        "torch.jit.load('x')",
        "np.load('x', allow_pickle=True)",
        "f('x', weights_only=False)",
        "auto.from_pretrained('x', trust_remote_code=True)",
    ],
)
def test_an_unsafe_call_is_found(source: str, tmp_path: Path) -> None:
    file = tmp_path / "sample.py"
    file.write_text(source)
    assert unsafe_calls(file) == [source]


def test_locks_name_no_host() -> None:
    locks = sorted((ROOT / "requirements").glob("*.lock"))
    assert [lock.name for lock in locks] == ["dev.lock", "run.lock", "uv.lock"]
    bad = re.compile(r"https?://|^\s*--(?!hash=)", re.MULTILINE)
    assert [lock.name for lock in locks if bad.search(lock.read_text())] == []


@pytest.mark.parametrize("lock", ["dev.lock", "run.lock", "uv.lock"])
def test_every_locked_requirement_is_pinned_and_hashed(lock: str) -> None:
    text = (ROOT / "requirements" / lock).read_text().replace("\\\n", " ")
    requirements = [line for line in text.splitlines() if line.strip()]
    assert requirements
    assert [r for r in requirements if "==" not in r or "--hash=sha256:" not in r] == []


def test_every_setting_is_documented() -> None:
    table = [
        line
        for line in (ROOT / "docs/settings.md").read_text().splitlines()
        if line.startswith("| `LETHE_")
    ]
    assert table == setting_rows(), "docs/settings.md must hold:\n" + "\n".join(setting_rows())


def test_git_does_not_ignore_core() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    sources = [str(path) for path in files(*CODE)]
    done = subprocess.run(
        ["git", "check-ignore", "--no-index", "core", *sources],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (1, ""), done.stderr


def test_code_is_ascii() -> None:
    lines = (
        (f"{path}:{number}", line)
        for path in files(*CODE)
        for number, line in enumerate((ROOT / path).read_text().splitlines(), 1)
    )
    assert [place for place, line in lines if not line.isascii()] == []


def test_every_package_folder_has_its_init() -> None:
    folders = {path.parent for path in files(*CODE) if path.parts[0] != "migrations"}
    assert [str(f) for f in sorted(folders) if not (ROOT / f / "__init__.py").exists()] == []
