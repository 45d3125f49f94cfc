"""Reading users' states: the snapshot half of each listener, encoded and measured, so that its faults stay its own."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from callboard.errors import Unavailable
from callboard.events.bus import Bus
from callboard.fleet.declared import Declared, log_failure, read_snapshot
from callboard.fleet.presence import Presence
from callboard.messages import Event
from callboard.service import User
from callboard.telemetry import Telemetry

_READS_AT_A_TIME = 200
"""Of one listener: the source of one that hangs must not cost the others their turn."""


class Reading(NamedTuple):
    """A listener's syncs, as events and as what goes to a socket."""

    listener: str
    events: list[Event]
    frames: list[str]


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

    def segments(self) -> dict[str, frozenset[str] | None]:
        """By listener, the first segments of its syncs' types; None for one that has not been read here yet."""
        return {name: self._segments.get(name) for name in self._declared}

    async def one(self, uid: str, name: str) -> Reading | None:
        """One listener's reading; None when it failed (logged). Unavailable without Redis."""
        return await self._read(self._declared[name], await self._presence.user(uid))

    async def all(self, uid: str) -> list[Reading | str]:
        """Every listener's reading, or the name of one that failed (logged). Unavailable without Redis."""
        user = await self._presence.user(uid)
        declared = list(self._declared.values())
        found = await asyncio.gather(*(self._read(one, user) for one in declared))
        return [reading or one.name for one, reading in zip(declared, found, strict=True)]

    async def publish(self, uid: str) -> Synced:
        """Publish every listener's syncs, event by event; Unavailable when Redis is away before the first of them."""
        published, failed = 0, []
        for reading in await self.all(uid):
            if isinstance(reading, str):
                failed.append(reading)
                continue
            try:
                for event in reading.events:
                    await self._bus.publish(event)
                    published += 1
            except Exception as error:
                if isinstance(error, Unavailable) and not published:
                    raise
                log_failure(self._telemetry, self._declared[reading.listener], uid, error)
                failed.append(reading.listener)
        return Synced(published, failed)

    async def _read(self, declared: Declared, user: User) -> Reading | None:
        try:
            async with self._slots[declared.name]:
                events = await read_snapshot(declared.make(), user, self._timeout_s)
            for event in events:
                event.listener = declared.name
            frames = [self._bus.encode(event).decode() for event in events]
        except Exception as error:  # noqa: BLE001 - the other listeners' syncs still count
            log_failure(self._telemetry, declared, user.uid, error)
            return None
        known = self._segments.get(declared.name, frozenset())
        self._segments[declared.name] = known | {event.type.partition(".")[0] for event in events}
        return Reading(declared.name, events, frames)
