"""Waiting for what no event announces."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def eventually(look: Callable[[], Awaitable[T]], reached: Callable[[T], object] = bool) -> T:
    """What `look` finds as soon as `reached` holds for it; TimeoutError after ten seconds."""
    async with asyncio.timeout(10):
        while True:
            found = await look()
            if reached(found):
                return found
            await asyncio.sleep(0.01)
