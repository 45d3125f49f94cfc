"""Who listens in the benchmark of streams: `python -m benchmarks.followers stream|listen DATABASE_URL`.

Follower `i` follows the direct messages of user `i`.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import firebase_admin
import httpx
from firebase_admin import db

from benchmarks.processes import Cost, serve
from benchmarks.sources import inbox_path, number_and_time
from benchmarks.watchers import Seen
from callboard_firebase import Firebase, FirebaseSettings


def _note(seen: Seen, message: Any) -> None:
    n, sent_at = number_and_time(message["file_name"])
    seen.note({"n": n, "sent_at": sent_at})


class Streams:
    """The streams of callboard-firebase, one task more for each that reads it."""

    def __init__(self, firebase: Firebase) -> None:
        self._database = firebase.realtime
        self._seen = Seen()
        self._tasks: list[asyncio.Task[None]] = []

    async def _follow(self, number: int) -> None:
        async with self._database.watch(inbox_path(f"u{number}")) as batches:
            async for batch in batches:
                self._seen.settled += batch.initial
                for change in () if batch.initial else batch.changes:
                    _note(self._seen, change.value)

    async def listen(self, first: int, count: int, within_s: float) -> int:
        """Add followers; how many of all have their first state, after so many seconds at most."""
        loop = asyncio.get_running_loop()
        self._tasks += [loop.create_task(self._follow(number)) for number in range(first, first + count)]
        until = loop.time() + within_s
        while self._seen.settled < len(self._tasks) and loop.time() < until:
            await asyncio.sleep(0.02)
        return self._seen.settled

    async def report(self) -> dict[str, Any]:
        return self._seen.report()

    async def cost(self) -> list[float]:
        return _cost()


class Listens:
    """Google's `firebase_admin.db.listen()`."""

    def __init__(self, url: str) -> None:
        firebase_admin.initialize_app(options={"databaseURL": url})
        self._seen = Seen()
        self._lock = threading.Lock()
        self._settled: set[int] = set()
        self._listening: list[Any] = []

    def _follow(self, number: int) -> None:
        def told(event: db.Event) -> None:
            with self._lock:
                first = number not in self._settled
                self._settled.add(number)
                below = event.path.strip("/")
                for message in () if first else [event.data] if below else (event.data or {}).values():
                    _note(self._seen, message)

        self._listening.append(db.reference(inbox_path(f"u{number}")).listen(told))

    async def listen(self, first: int, count: int, within_s: float) -> int:
        loop = asyncio.get_running_loop()
        for number in range(first, first + count):
            await asyncio.to_thread(self._follow, number)
        until = loop.time() + within_s
        while len(self._settled) < len(self._listening) and loop.time() < until:
            await asyncio.sleep(0.02)
        return len(self._settled)

    async def report(self) -> dict[str, Any]:
        with self._lock:
            return self._seen.report()

    async def cost(self) -> list[float]:
        return _cost()


def _cost() -> list[float]:
    gc.collect()
    cost = Cost.of(os.getpid())
    return [cost.rss, cost.threads]


@asynccontextmanager
async def _contender(name: str, url: str) -> AsyncIterator[Streams | Listens]:
    if name == "listen":
        # A listener that gives up does so with an exception on its own thread.
        threading.excepthook = lambda _: None
        yield Listens(url)
        return
    host = httpx.URL(url).netloc.decode()
    async with Firebase(FirebaseSettings(realtime_url=url, realtime_emulator_host=host)) as firebase:
        yield Streams(firebase)


async def main(name: str, url: str) -> None:
    logging.disable(logging.CRITICAL)
    async with _contender(name, url) as contender:
        await serve({name: getattr(contender, name) for name in ("listen", "report", "cost")})
        # The threads of `db.listen()` do not end by themselves.
        os._exit(0)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
