"""What every group of methods stands on: the Realtime Database, and how it is doing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from callboard import ConfigurationError, Service, Unavailable
from callboard_firebase import Firebase
from callboard_firebase.items import wire_time
from callboard_firebase.realtime import RealtimeDatabase

AT_A_TIME = 16
"""Requests to the database that one call has under way."""
_CLOCKS_DIFFER_S = 5.0

T = TypeVar("T")


class RealtimeService(Service):
    """Opens the app's Firebase and offers its Realtime Database."""

    firebase: Firebase

    async def open(self) -> None:
        """Join the Firebase that the app's plugins share. ConfigurationError: it has no Realtime Database."""
        self.firebase = await self.host.shared(Firebase)
        try:
            _ = self.firebase.realtime
        except Unavailable as error:
            raise ConfigurationError(
                "no Realtime Database is configured: set FIREBASE_REALTIME_DB_URL, and FIREBASE_ADMIN_JSON or "
                "GOOGLE_APPLICATION_CREDENTIALS (FIREBASE_DATABASE_EMULATOR_HOST for an emulator)"
            ) from error

    @property
    def database(self) -> RealtimeDatabase:
        return self.firebase.realtime

    async def health(self) -> dict[str, Any]:
        """`realtime_health`, or the error that the database ends it with."""
        return await realtime_health(self.firebase)


async def realtime_health(firebase: Firebase) -> dict[str, Any]:
    """One cheap read: `{"status": "ok", "read_ms", "streams"}`, or the error that the database ends it with.

    `streams` is how those behind the listeners are doing: see `StreamStats` of callboard-firebase.
    """
    try:
        database = firebase.realtime
    except Unavailable:
        return {"status": "not configured"}
    return {"status": "ok", "read_ms": round(await database.check() * 1000), "streams": asdict(database.stats())}


def as_of_now() -> str:
    """The `as_of` of a sync whose read begins now, or of one that a watch shows now.

    The database tells no read time, and whoever sends the deltas may have a clock that is behind this one's. A delta
    that is older than a sync's `as_of` is left out as covered by it: if it was not, a message would be lost. So the
    time is some seconds too early, and a delta may tell what the sync has already: consumers know it by the message's
    id.
    """
    return wire_time(datetime.now(UTC) - timedelta(seconds=_CLOCKS_DIFFER_S))


async def look_up(keys: Sequence[str], look: Callable[[str], Awaitable[T]]) -> list[T]:
    """`look` at each key, `AT_A_TIME` of them together: the answers in the order of the keys. An error ends it."""
    slots = asyncio.Semaphore(AT_A_TIME)

    async def one(key: str) -> T:
        async with slots:
            return await look(key)

    try:
        async with asyncio.TaskGroup() as looking:
            tasks = [looking.create_task(one(key), name="a look-up") for key in keys]
    except ExceptionGroup as group:
        raise group.exceptions[0] from group.exceptions[0].__cause__
    return [task.result() for task in tasks]
