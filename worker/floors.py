"""Whether the libraries that read uploads are new enough: older ones have known holes."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

READERS = ("torch", "pyarrow", "pillow", "safetensors")
"""Libraries to which runners give bytes that somebody sent."""

PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"
_FLOOR = re.compile(r"([A-Za-z0-9_.-]+)[^;]*?>=\s*([0-9.]+)")


def fault() -> str | None:
    """Return which libraries are missing or too old; None if all are as ``pyproject.toml`` says."""
    floors = _floors()
    found = {name: _installed(name) for name in READERS}
    old = [
        f"{name} {version or 'missing'} (at least {floors[name]})"
        for name, version in found.items()
        if version is None or _numbers(version) < _numbers(floors[name])
    ]
    if not old:
        return None
    return f"libraries that read uploads are too old to be safe: {', '.join(old)}"


def _floors() -> dict[str, str]:
    """Least version of each dependency: of the project, or of the package made from it."""
    if PROJECT.exists():
        wanted = tomllib.loads(PROJECT.read_text())["project"]["dependencies"]
    else:
        wanted = metadata.requires("lethe") or []
    found = [_FLOOR.match(each) for each in wanted]
    return {each[1].lower(): each[2] for each in found if each is not None}


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    """Numbers of a release, as ``(2, 11)`` of ``2.11.0+cpu``; zeros at the end do not count."""
    release = re.match(r"\d+(\.\d+)*", version)
    numbers = [] if release is None else [int(part) for part in release[0].split(".")]
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)
