"""Reading users' states: the snapshot half of each listener, encoded and measured, so that its faults stay its own."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from callboard.errors import Unavailable
from callboard.events.bus import Bus
from callboard.fleet.declared import Declared, log_failure, read_snapshot
from callboard.fleet.presence import Presence
from callboard.messages import Event
from callboard.service import Thread, User
from callboard.telemetry import Telemetry

_READS_AT_A_TIME = 200
"""Of one listener: the source of one that hangs must not cost the others their turn."""
_OF_THREADS = frozenset({"chat"})
"""What `Declared.address` lets pass."""


class Reading(NamedTuple):
    """A listener's syncs, as events and as what goes to a socket. `specific`: the rest of their channel."""

    listener: str
    events: list[Event]
    frames: list[str]
    specific: tuple[str, ...] = ()


class Snapshot(NamedTuple):
    """The syncs of a user's listeners, and the names of those that could not be read."""

    events: list[Event]
    failed: list[str]


class Synced(NamedTuple):
    """How many syncs were published, and the names of the listeners of which one could not be."""

    events: int
    failed: list[str]


class Snapshots:
    """`declared` is the fleet's, by name; it is looked into at every read."""

    def __init__(
        self,
        declared: Mapping[str, Declared],
        presence: Presence,
        bus: Bus,
        telemetry: Telemetry,
        *,
        timeout_s: float,
    ) -> None:
        self._declared = declared
        self._presence = presence
        self._bus = bus
        self._telemetry = telemetry
        self._timeout_s = timeout_s
        self._slots: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(_READS_AT_A_TIME))
        self._segments: dict[str, frozenset[str]] = {}

    def segments(self, thread: Thread | None = None) -> dict[str, frozenset[str] | None]:
        """By listener, the first segments of its syncs' types; None for one that has not been read here yet.

        The listeners are the user's, and those of `thread`: what a socket hears that has it open.
        """
        return {
            name: _OF_THREADS if one.per_thread else self._segments.get(one.name)
            for name, one in self._heard(thread).items()
        }

    async def one(self, uid: str, name: str, thread: Thread | None = None) -> Reading | None:
        """One listener's reading; None when it failed (logged). `name` as in `segments`. Unavailable without Redis."""
        return await self._read(self._heard(thread)[name], await self._presence.user(uid), thread)

    async def all(self, uid: str) -> list[Reading | str]:
        """The reading of each of the user's own listeners, or the name of one that failed (logged). Unavailable."""
        return await self._read_all(uid, self._of_user())

    async def publish(self, uid: str, threads: Iterable[Thread] = (), *, whole: bool = True) -> Synced:
        """Publish the syncs of the user's own listeners (unless `whole` is false) and of these threads', one by one.

        Unavailable when Redis is away before the first of them.
        """
        per_thread = [one for one in self._declared.values() if one.per_thread]
        published, failed = 0, []
        wanted = [*(self._of_user() if whole else ()), *((one, thread) for thread in threads for one in per_thread)]
        for (declared, thread), reading in zip(wanted, await self._read_all(uid, wanted), strict=True):
            if isinstance(reading, str):
                failed.append(reading)
                continue
            try:
                for event in reading.events:
                    await self._bus.publish(event, specific=reading.specific)
                    published += 1
            except Exception as error:
                if isinstance(error, Unavailable) and not published:
                    raise
                log_failure(self._telemetry, declared, uid, error, thread=thread)
                failed.append(reading.listener)
        return Synced(published, failed)

    def _of_user(self) -> list[tuple[Declared, Thread | None]]:
        return [(one, None) for one in self._declared.values() if not one.per_thread]

    def _heard(self, thread: Thread | None) -> dict[str, Declared]:
        return {
            one.source_name(thread): one for one in self._declared.values() if thread is not None or not one.per_thread
        }

    async def _read_all(self, uid: str, wanted: list[tuple[Declared, Thread | None]]) -> list[Reading | str]:
        user = await self._presence.user(uid)
        found = await asyncio.gather(*(self._read(one, user, thread) for one, thread in wanted))
        return [reading or one.source_name(thread) for (one, thread), reading in zip(wanted, found, strict=True)]

    async def _read(self, declared: Declared, user: User, thread: Thread | None) -> Reading | None:
        specific: tuple[str, ...] = ()
        try:
            async with self._slots[declared.name]:
                events = await read_snapshot(declared.make(thread), user, self._timeout_s)
            for event in events:
                specific = declared.address(event, thread)
            frames = [self._bus.encode(event).decode() for event in events]
        except Exception as error:  # noqa: BLE001 - the other listeners' syncs still count
            log_failure(self._telemetry, declared, user.uid, error, thread=thread)
            return None
        known = self._segments.get(declared.name, frozenset())
        self._segments[declared.name] = known | {event.type.partition(".")[0] for event in events}
        return Reading(declared.source_name(thread), events, frames, specific)
