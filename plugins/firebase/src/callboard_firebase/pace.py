"""Bursts: how long changes are told one by one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

BURST = 50
"""Changes at once that are a burst: what tells them does better to tell the state as a whole."""


class Pace:
    """Holds the reader of a watch up during a burst, so that the watch gathers what follows into one batch.

    A watch keeps nothing but the latest state of each document. A reader that takes every commit as it comes defeats
    that: 500 writes become 500 batches. So: `burst` changes pass as they come, as many again a second later, and beyond
    that the reader waits `gather_s` seconds between batches.
    """

    def __init__(
        self,
        *,
        burst: int = BURST,
        gather_s: float = 0.5,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._burst = burst
        self._gather_s = gather_s
        self._clock = clock
        self._sleep = sleep
        self._level = 0.0
        self._at = clock()

    async def told(self, changes: int) -> None:
        """So many changes were taken: returns when the next batch is to be taken."""
        now = self._clock()
        drained = max(0.0, self._level - (now - self._at) * self._burst)
        # Bounded: one huge batch is told by now, and must not slow down what comes seconds later.
        self._level, self._at = min(drained + changes, 2.0 * self._burst), now
        if self._level > self._burst:
            await self._sleep(self._gather_s)
