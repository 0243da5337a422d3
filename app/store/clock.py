"""The database's clock, so that no machine's own clock decides about a lease; and its seconds."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Double
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement


class now(FunctionElement[float]):  # noqa: N801  # reads as the SQL function it is
    """Seconds since the epoch, as SQL; moves within a transaction."""

    type = Double()
    inherit_cache = True
    name = "lethe_now"


_SPELLING = {
    "postgresql": "extract(epoch from clock_timestamp())::double precision",
    "sqlite": "((julianday('now') - 2440587.5) * 86400.0)",
}


@compiles(now)
def _spell(_element: now, compiler: Any, **_options: Any) -> str:
    return _SPELLING[compiler.dialect.name]


class seconds(FunctionElement[float]):  # noqa: N801  # reads as the SQL function it is
    """Seconds since the epoch of a timestamp column, as SQL."""

    type = Double()
    inherit_cache = True
    name = "lethe_seconds"


@compiles(seconds, "postgresql")
def _postgres(element: seconds, compiler: Any, **options: Any) -> str:
    return f"extract(epoch from {compiler.process(element.clauses, **options)})::double precision"


@compiles(seconds, "sqlite")
def _sqlite(element: seconds, compiler: Any, **options: Any) -> str:
    return f"((julianday({compiler.process(element.clauses, **options)}) - 2440587.5) * 86400.0)"
