"""Many users' pages at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Self

from faults.page import Page


class Screens:
    """`count` users, user0, user1, …, each with one page, whose session keeps its id."""

    def __init__(self, count: int, url: Callable[[], str], *, longest_pause_s: float = 3.0) -> None:
        self.pages = [
            Page(f"user{n}", url, session_id=f"tab{n}", longest_pause_s=longest_pause_s) for n in range(count)
        ]

    @property
    def users(self) -> list[str]:
        return [page.uid for page in self.pages]

    @property
    def breaches(self) -> list[str]:
        return [breach for page in self.pages for breach in page.breaches]

    async def __aenter__(self) -> Self:
        """All of them connected and synced."""
        await asyncio.gather(*(page.__aenter__() for page in self.pages))
        await self.until(lambda page: page.number is not None)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await asyncio.gather(*(page.__aexit__() for page in self.pages))

    async def until(self, condition: Callable[[Page], object], within_s: float = 90) -> float:
        """Wait until it holds of every page; how many seconds that took. TimeoutError."""
        began = time.monotonic()
        waiting = self.pages
        async with asyncio.timeout(within_s):
            while waiting := [page for page in waiting if not condition(page)]:
                await asyncio.sleep(0.05)
        return time.monotonic() - began
