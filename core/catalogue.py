"""``python -m core.catalogue``: what is registered, as the Markdown page docs/catalogue.md."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, cast

from . import networks
from .audits import audits
from .pruners import PrunerOptions, pruners
from .registry import Entry
from .unlearners import UnlearnerOptions, unlearners

_HEADING = re.compile(r"^([A-Z][a-z]+):\s+", re.MULTILINE)

_INTRODUCTION = """\
# Catalogue

What is registered, made from the code by `make docs`; a test fails while the page is out of date.
The API has the same with the JSON Schema of every option: `GET /unlearners`, `/pruners`, `/audits`
and `/networks`.
"""


def notes(entry: Entry[Any]) -> dict[str, str]:
    """Return what the docstring of a variant's file says under its headings, each as one line.

    The headings are ``Source``, ``Differs``, ``Cost`` and ``Promise``, of audits ``Reference`` in
    place of the last two. A variant without headings has an empty dictionary.
    """
    text = inspect.getdoc(inspect.getmodule(entry.run)) or ""
    _, *parts = _HEADING.split(text)
    # a heading ends at the next one, or with its paragraph
    lines = [" ".join(part.partition("\n\n")[0].split()).replace("``", "`") for part in parts[1::2]]
    return dict(zip(parts[::2], lines, strict=True))


def needs_of_unlearner(entry: Entry[Any]) -> tuple[str, ...]:
    """What an unlearner needs with its default options."""
    return cast("UnlearnerOptions", _defaults(entry)).all_needs


def needs_of_pruner(entry: Entry[Any]) -> tuple[str, ...]:
    """What a pruner needs with its default options."""
    return cast("PrunerOptions", _defaults(entry)).needs


def page() -> str:
    """Return docs/catalogue.md."""
    sections = [_INTRODUCTION, _unlearners(), _pruners(), _audits(), _networks()]
    return "\n".join(sections)


def main() -> None:
    """Print the page."""
    sys.stdout.write(page())


def _unlearners() -> str:
    rows = []
    for entry in unlearners:
        said, config = notes(entry), cast("type[UnlearnerOptions]", entry.config)
        rows.append(
            [
                f"`{entry.name}`",
                entry.summary,
                "exact" if config.exact else "approximate",
                ", ".join(needs_of_unlearner(entry)) or "nothing more",
                ", ".join(config.networks) or "any",
                said["Cost"],
                said["Promise"],
                config.source,
            ]
        )
    return _section(
        f"Unlearners ({len(rows)})",
        "Exact: the same as retraining by construction. Needs: what must be there beside the\n"
        "records to forget; `importance` is stored, or measured on training records. Both with\n"
        "default options; `prune_first` is as exact as what it runs, and needs what that needs,\n"
        "as `tuned` does.",
        ("Name", "What it does", "Kind", "Needs", "Networks", "Cost", "Promise", "Source"),
        rows,
    )


def _pruners() -> str:
    rows = []
    for entry in pruners:
        said = notes(entry)
        rows.append(
            [
                f"`{entry.name}`",
                entry.summary,
                ", ".join(needs_of_pruner(entry)) or "nothing more",
                said["Cost"],
                said["Promise"],
                entry.config.source,
            ]
        )
    return _section(
        f"Pruners ({len(rows)})",
        "Used through `prune_first`.",
        ("Name", "What it does", "Needs", "Cost", "Promise", "Source"),
        rows,
    )


def _audits() -> str:
    rows = []
    for entry in audits:
        config: Any = entry.config
        rows.append(
            [
                f"`{entry.name}`",
                entry.summary,
                "every rung" if config.routine else "on demand",
                ", ".join(config.needs) or "nothing more",
                notes(entry)["Reference"],
                config.source,
            ]
        )
    return _section(
        f"Audits ({len(rows)})",
        "Audits measure; gates decide. Those of every rung run no model of their own, and can be\n"
        "asked for, too. `before`: the weights from before the forgetting; `references`: a bank\n"
        "of reference models. Without what it needs an audit is inconclusive.",
        ("Name", "What it measures", "Runs", "Needs", "Reference", "Source"),
        rows,
    )


def _networks() -> str:
    families: dict[type[Any], list[str]] = {}
    for entry in networks.networks:
        families.setdefault(entry.config, []).append(f"`{entry.name}`")
    rows = [
        [", ".join(names), networks.networks[names[0].strip("`")].summary, config.source]
        for config, names in families.items()
    ]
    return _section(
        f"Network families ({len(rows)})",
        "Names in one row share their options.",
        ("Names", "What it is", "Source"),
        rows,
    )


def _defaults(entry: Entry[Any]) -> Any:
    return entry.config.model_validate({"name": entry.name})


def _section(title: str, text: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    table = [columns, ["---"] * len(columns), *rows]
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in table]
    return "\n".join([f"## {title}", "", text, "", *lines, ""])


if __name__ == "__main__":
    main()
