"""The chat threads that this replica wants watched: its own sockets have them open, or a call asked for them.

Kept in memory alone. A replica runs a thread's listeners while it wants the thread and holds their leases; what only
another replica wants is that one's business. So a thread outlives no replica that has it open, and none that died
leaves a trace.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

from callboard.errors import FailedPrecondition, InvalidArgs
from callboard.messages import check_identifier
from callboard.service import Thread

MAX_ASKED_FOR = 100
"""Threads of one user that calls may ask one replica for; sockets are bounded by their own number."""
MAX_FOR_S = 3_600.0

Place: TypeAlias = tuple[str, str]


@dataclass(slots=True)
class _Open:
    thread: Thread
    sockets: int = 0
    asked_until: float = -math.inf
    closed_at: float = -math.inf

    def is_over(self, now: float, grace_s: float) -> bool:
        return not self.sockets and now >= max(self.asked_until, self.closed_at + grace_s)


class Threads:
    """By user and place, what is open here. Openers may differ in the mode: the latest one that says which counts."""

    def __init__(self) -> None:
        self._open: dict[str, dict[Place | tuple[()], _Open]] = {}
        self._stirred: set[str] = set()
        self._wake = asyncio.Event()

    @contextmanager
    def keeping_open(self, uid: str, thread: Thread) -> Iterator[None]:
        """A socket has the thread open, for as long as this is entered."""
        opened = self._enter(uid, thread)
        opened.sockets += 1
        try:
            yield
        finally:
            opened.sockets -= 1
            opened.closed_at = time.monotonic()

    def ask(self, uid: str, thread: Thread, for_s: float) -> None:
        """Want the thread for `for_s` seconds from now, whatever was asked before."""
        check_identifier(uid)
        if not 0 < for_s <= MAX_FOR_S:
            raise InvalidArgs(f"a thread is opened for at most {MAX_FOR_S:.0f} seconds")
        now = time.monotonic()
        others = (opened for place, opened in self._open.get(uid, {}).items() if place != thread.place)
        if sum(opened.asked_until > now for opened in others) >= MAX_ASKED_FOR:
            raise FailedPrecondition(f"At most {MAX_ASKED_FOR} threads of a user can be asked for.")
        self._enter(uid, thread).asked_until = now + for_s

    def drop(self, uid: str, thread: Thread) -> None:
        """Take `ask` back; sockets that have the thread open keep it."""
        opened = self._open.get(uid, {}).get(thread.place)
        if opened is not None and opened.asked_until > -math.inf:
            opened.asked_until, opened.closed_at = -math.inf, time.monotonic()

    def forget(self, grace_s: float) -> None:
        """Let go what nobody here has wanted for `grace_s` seconds."""
        now = time.monotonic()
        for uid, places in list(self._open.items()):
            for place in [place for place, opened in places.items() if opened.is_over(now, grace_s)]:
                del places[place]
            if not places:
                del self._open[uid]

    def get(self, uid: str, place: Place | tuple[()]) -> Thread | None:
        """The thread at this place, in the mode that counts; None when it is not wanted here."""
        opened = self._open.get(uid, {}).get(place)
        return None if opened is None else opened.thread

    def of(self, uid: str) -> list[Thread]:
        return [opened.thread for opened in self._open.get(uid, {}).values()]

    def users(self) -> list[str]:
        return list(self._open)

    def stir(self, uids: Iterable[str]) -> None:
        """Have those of them who have a thread open here be `stirred`."""
        self._stirred.update(uid for uid in uids if uid in self._open)
        if self._stirred:
            self._wake.set()

    async def stirred(self) -> set[str]:
        """The users of whom a thread was opened, or of whom `stir` tells, since the last time; once there are any."""
        await self._wake.wait()
        self._wake.clear()
        stirred, self._stirred = self._stirred, set()
        return stirred

    def _enter(self, uid: str, thread: Thread) -> _Open:
        places = self._open.setdefault(uid, {})
        opened = places.get(thread.place)
        if opened is None:
            opened = places[thread.place] = _Open(thread)
        elif thread.mode != "auto":
            opened.thread = thread
        self._stirred.add(uid)
        self._wake.set()
        return opened
