"""JSON in both directions; what is large is taken to a thread, a few at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")

LARGE_BYTES = 64 * 1024


class Bodies:
    """The threads of one database."""

    def __init__(self) -> None:
        self._large = asyncio.Semaphore(2)

    async def run(self, size: int, function: Callable[[], T]) -> T:
        """The function's result; on a thread when the JSON it works on is larger than 64 KiB."""
        if size <= LARGE_BYTES:
            return function()
        async with self._large:
            return await asyncio.to_thread(function)


def size_of(value: Any) -> int:
    """Bytes of a value as JSON, or 0 for what is none: whoever encodes it in earnest says why."""
    try:
        return len(msgspec.json.encode(value))
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError):
        return 0
