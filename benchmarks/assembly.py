"""What carries an event, and nothing else: `python -m benchmarks.assembly SOURCE`, the environment as the service's.

Users' listeners, publishing by the service's bus; no leases, no presence, no gateway.
"""

from __future__ import annotations

import asyncio
import io
import os
import sys
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol

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

_AT_A_TIME = 100
"""Users who begin; beyond, a busy machine keeps them from Valkey for so long that they give up."""


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

    def __init__(self, bus: Bus, make: Callable[[], Changes], tasks: asyncio.TaskGroup) -> None:
        self._bus = bus
        self._make = make
        self._tasks = tasks
        self._listening = 0
        self._beginning = asyncio.Semaphore(_AT_A_TIME)

    async def enter(self, count: int) -> None:
        for number in range(count):
            self._tasks.create_task(self._run(f"u{number}"))
        while self._listening < count:
            await asyncio.sleep(0.05)

    async def listening(self) -> int:
        return self._listening

    async def _run(self, uid: str) -> None:
        try:
            await self._listen(uid)
        except Exception:  # noqa: BLE001 - whatever it is: what is measured is not whole any more
            traceback.print_exc()
            os._exit(1)

    async def _listen(self, uid: str) -> None:
        await self._beginning.acquire()
        told = False
        async for event in self._make().changes(User(uid=uid)):
            event.timestamp = event.timestamp or utc_now()
            await self._bus.publish(event)
            if not told:
                told = True
                self._listening += 1
                self._beginning.release()


async def main(source: str) -> None:
    settings = load(Settings, os.environ)
    telemetry = Telemetry(replica="bench", stream=io.StringIO())
    async with (
        Connections(settings, telemetry) as connections,
        Bus(settings, connections, telemetry, {}) as bus,
        LISTENERS[source]() as make,
        asyncio.TaskGroup() as tasks,
    ):
        assembly = Assembly(bus, make, tasks)
        await serve({"enter": assembly.enter, "listening": assembly.listening})
        os._exit(0)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
