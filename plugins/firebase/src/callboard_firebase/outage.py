"""What the streams of an engine, or of a database, know together: the server refuses, and whether it still does."""

from __future__ import annotations

import asyncio

from callboard_firebase.backoff import Backoff


class Outage:
    """While the server refuses, one stream at a time asks again, after a delay; the others wait for its success.

    So they ask no more often than the ceiling of one back-off says, however many streams there are, and all of them are
    back as soon as one is. A scout that is refused goes to the end of the queue: what keeps one stream from being
    answered must not keep the others waiting. Streams are told apart by identity alone.
    """

    def __init__(self, backoff: Backoff) -> None:
        self._backoff = backoff
        self._turn = asyncio.Lock()  # fair: first come, first served
        self._scout: object = None
        self._ended = 0

    async def wait(self, stream: object, cap_s: float | None = None) -> None:
        """The server refused `stream`: returns when it may ask again. `cap_s`: a lower cap for the delay."""
        self.resign(stream)
        ended = self._ended
        await self._turn.acquire()
        self._scout = stream
        if self._ended != ended:
            self.resign(stream)
            return
        try:
            await asyncio.sleep(self._backoff.delay(cap_s))
        except asyncio.CancelledError:
            self.resign(stream)
            raise

    def answered(self, stream: object) -> None:
        """The server answered `stream`: if that was the scout, the outage is over for all."""
        if self._scout is stream:
            self._ended += 1
            self._backoff.clear()
            self.resign(stream)

    def resign(self, stream: object) -> None:
        """`stream` asks no more; another may."""
        if self._scout is stream:
            self._scout = None
            self._turn.release()
