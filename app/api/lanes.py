"""Threads for what takes long, in lanes of their own: no upload's next bytes wait behind it.

What is short, such as the writing of a chunk, uses the few threads that asyncio has for everybody.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

IMPORTS = ThreadPoolExecutor(4, thread_name_prefix="import")
"""Files that are brought from elsewhere, which may be slow to answer, and put together."""

HASHING = ThreadPoolExecutor(2, thread_name_prefix="hash")
"""What an upload has on the disk, hashed again to go on from there."""


async def in_lane(
    lane: ThreadPoolExecutor,
    work: Callable[Arguments, Result],
    *arguments: Arguments.args,
    **options: Arguments.kwargs,
) -> Result:
    """Do as ``asyncio.to_thread`` does, in a thread of this lane; wait for one that is free."""
    # The context says on whose behalf this is.
    called = partial(contextvars.copy_context().run, work, *arguments, **options)
    return await asyncio.get_running_loop().run_in_executor(lane, called)
