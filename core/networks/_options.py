"""Options that go to an optional package: plain JSON of bounded size."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator

LARGEST = 65_536
MOST_ITEMS = 256
MOST_LEVELS = 4


def bounded(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options; raise ValueError if they are large."""
    num_items = _check(options, depth=0)
    if num_items > MOST_ITEMS:
        raise ValueError(f"at most {MOST_ITEMS} values")
    return options


def _check(value: Any, depth: int) -> int:
    """Count the values in there; refuse what could cost more than it seems."""
    if depth > MOST_LEVELS:
        raise ValueError("nested too deeply")
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return sum(_check(each, depth + 1) for each in inner)
    if isinstance(value, str) and len(value) > 64:
        raise ValueError("a string is at most 64 characters")
    if isinstance(value, int | float) and not -LARGEST <= value <= LARGEST:
        raise ValueError(f"numbers are at most {LARGEST}")
    return 1


Options = Annotated[dict[str, Any], AfterValidator(bounded)]
