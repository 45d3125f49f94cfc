"""Who listens in the benchmark of listeners: `python -m benchmarks.watchers engine|on_snapshot ADDRESS`.

Listener `i` is a document when `i` is even, and a filtered query over a collection of its own when it is odd.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

from google.auth.credentials import AnonymousCredentials
from google.cloud.firestore import Client, FieldFilter

from benchmarks.processes import Cost, serve
from callboard_firebase import Firebase, FirebaseSettings
from callboard_firebase.listen import Source

PROJECT = "demo"
_GET_TIMEOUT_S = 5.0


def path(number: int) -> str:
    """The document that listener `number` sees."""
    return f"clients/u{number}/{'task_manager/job' if number % 2 == 0 else 'notifications/n'}"


class Seen:
    """What arrived: which writes, how often, and how long after they were sent."""

    def __init__(self) -> None:
        self.settled = 0
        self.deliveries: Counter[int] = Counter()
        self.times: list[float] = []

    def note(self, data: dict[str, Any]) -> None:
        if "n" in data:
            self.deliveries[data["n"]] += 1
            self.times.append((time.monotonic() - data["sent_at"]) * 1000)

    def report(self) -> dict[str, Any]:
        return {"deliveries": list(self.deliveries.items()), "ms": self.times}


class Engine:
    """The listen engine of callboard-firebase, one task a listener."""

    def __init__(self, firebase: Firebase) -> None:
        self._firebase = firebase
        self._seen = Seen()
        self._tasks: list[asyncio.Task[None]] = []

    def _source(self, number: int) -> Source:
        document = self._firebase.client.document(path(number))
        return document if number % 2 == 0 else document.parent.where(filter=FieldFilter("read", "==", False))

    async def _watch(self, number: int) -> None:
        async with self._firebase.listen.watch(self._source(number)) as batches:
            async for batch in batches:
                self._seen.settled += batch.initial
                for change in () if batch.initial else batch.changes:
                    self._seen.note(change.document.data)

    async def listen(self, first: int, count: int, within_s: float) -> int:
        """Add listeners; how many of all have their first state, after so many seconds at most."""
        loop = asyncio.get_running_loop()
        self._tasks += [loop.create_task(self._watch(number)) for number in range(first, first + count)]
        until = loop.time() + within_s
        while self._seen.settled < len(self._tasks) and loop.time() < until:
            await asyncio.sleep(0.02)
        return self._seen.settled

    async def get(self, times: int) -> list[float]:
        """Milliseconds of ordinary reads on the same client, one after the other."""
        document = self._firebase.client.document("settings_param/one")
        taken = []
        for _ in range(times):
            began = time.perf_counter()
            await document.get(timeout=_GET_TIMEOUT_S)
            taken.append((time.perf_counter() - began) * 1000)
            await asyncio.sleep(0.01)
        return taken

    async def report(self) -> dict[str, Any]:
        return self._seen.report()

    async def cost(self) -> list[float]:
        gc.collect()
        cost = Cost.of(os.getpid())
        return [cost.rss, cost.threads]

    async def streams(self) -> int:
        return self._firebase.listen.stats().connected


class Snapshots:
    """Google's `on_snapshot`, on its synchronous client."""

    def __init__(self) -> None:
        self._client = Client(project=PROJECT, credentials=AnonymousCredentials())  # type: ignore[no-untyped-call]
        self._seen = Seen()
        self._lock = threading.Lock()
        self._watches: list[Any] = []
        self._settled: set[int] = set()

    def _watch(self, number: int) -> None:
        def told(_: Any, changes: Any, __: Any) -> None:
            with self._lock:
                first = number not in self._settled
                self._settled.add(number)
                for change in () if first else changes:
                    self._seen.note(change.document.to_dict())

        document = self._client.document(path(number))
        source: Any = document if number % 2 == 0 else document.parent.where(filter=FieldFilter("read", "==", False))
        self._watches.append(source.on_snapshot(told))

    async def listen(self, first: int, count: int, within_s: float) -> int:
        for number in range(first, first + count):
            self._watch(number)
        until = time.monotonic() + within_s
        while len(self._settled) < len(self._watches) and time.monotonic() < until:
            await asyncio.sleep(0.02)
        return len(self._settled)

    async def get(self, times: int) -> list[float]:
        """Empty when a read does not come back within 5 s."""
        taken = []
        for _ in range(times):
            began = time.perf_counter()
            try:
                await asyncio.to_thread(
                    self._client.document("settings_param/one").get, timeout=_GET_TIMEOUT_S, retry=None
                )
            except Exception:  # noqa: BLE001 - which it is does not matter: the read failed
                return []
            taken.append((time.perf_counter() - began) * 1000)
            await asyncio.sleep(0.01)
        return taken

    async def report(self) -> dict[str, Any]:
        with self._lock:
            return self._seen.report()

    async def cost(self) -> list[float]:
        gc.collect()
        cost = Cost.of(os.getpid())
        return [cost.rss, cost.threads]

    async def streams(self) -> int:
        return len(self._settled)


async def _contender(name: str, address: str) -> AsyncIterator[Engine | Snapshots]:
    if name == "on_snapshot":
        os.environ["FIRESTORE_EMULATOR_HOST"] = address
        yield Snapshots()
        return
    async with Firebase(FirebaseSettings(project_id=PROJECT, emulator_host=address)) as firebase:
        yield Engine(firebase)


async def main(name: str, address: str) -> None:
    logging.disable(logging.CRITICAL)
    async for contender in _contender(name, address):
        names = ("listen", "get", "report", "cost", "streams")
        await serve({name: getattr(contender, name) for name in names})
        # The other threads of on_snapshot do not end by themselves.
        os._exit(0)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
