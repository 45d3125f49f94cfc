"""What carries an event, and nothing else: `python -m benchmarks.assembly SOURCE`, the environment as the service's.

Users' listeners, publishing by the service's bus; no leases, no presence, no gateway.
"""

from __future__ import annotations

import asyncio
import io
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol

from benchmarks.processes import serve
from callboard import Event, User
from callboard.connections import Connections
from callboard.events.bus import Bus
from callboard.messages import utc_now
from callboard.settings import Settings, load
from callboard.telemetry import Telemetry
from callboard_firebase import Firebase, FirebaseSettings
from callboard_firebase_management import FirebaseManagement, NotificationListener
from callboard_firebase_realtime import FirebaseRealtime, MessageListener


class Changes(Protocol):
    """The half of a listener that is run here."""

    def changes(self, user: User) -> AsyncIterator[Event]: ...


@asynccontextmanager
async def notifications() -> AsyncIterator[Callable[[], Changes]]:
    """Makes the listeners of unread notifications."""
    async with Firebase(load(FirebaseSettings, os.environ)) as firebase:
        service = FirebaseManagement()
        service.firebase = firebase

        def make() -> Changes:
            listener = NotificationListener()
            listener.service = service
            return listener

        yield make


@asynccontextmanager
async def messages() -> AsyncIterator[Callable[[], Changes]]:
    """Makes the listeners of direct messages."""
    async with Firebase(load(FirebaseSettings, os.environ)) as firebase:
        service = FirebaseRealtime()
        service.firebase = firebase

        def make() -> Changes:
            listener = MessageListener()
            listener.service = service
            return listener

        yield make


LISTENERS = {"firestore": notifications, "realtime": messages}
"""By source."""


class Assembly:
    """The users listened to; each has published its first sync when it counts as listening."""

    def __init__(self, bus: Bus, make: Callable[[], Changes]) -> None:
        self._bus = bus
        self._make = make
        self._listening = 0
        self._tasks: list[asyncio.Task[None]] = []

    async def enter(self, count: int) -> None:
        self._tasks = [asyncio.create_task(self._listen(f"u{number}")) for number in range(count)]
        while self._listening < count:
            for task in self._tasks:
                if task.done():
                    task.result()
            await asyncio.sleep(0.05)

    async def _listen(self, uid: str) -> None:
        told = False
        async for event in self._make().changes(User(uid=uid)):
            event.timestamp = event.timestamp or utc_now()
            await self._bus.publish(event)
            self._listening += not told
            told = True


async def main(source: str) -> None:
    settings = load(Settings, os.environ)
    telemetry = Telemetry(replica="bench", stream=io.StringIO())
    async with (
        Connections(settings, telemetry) as connections,
        Bus(settings, connections, telemetry, {}) as bus,
        LISTENERS[source]() as make,
    ):
        assembly: Any = Assembly(bus, make)
        await serve({"enter": assembly.enter})
        os._exit(0)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
