"""Users' screens: WebSockets that keep a user's state from syncs and deltas, as `docs/delivery.md` says."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from benchmarks.service import TOKEN
from benchmarks.sources import Source


class Consumer:
    """One user's: `state` is the number last told for each key."""

    def __init__(self, uid: str, told: Source) -> None:
        self.uid = uid
        self.state: dict[str, int] = {}
        self.heard: list[tuple[float, bool]] = []
        """When each event came (monotonic), and whether it was a sync."""
        self.doubled = 0
        """Events that came twice, and changes that two deltas told."""
        self.connects = 0
        self._told = told.told
        self._ids: set[str] = set()
        self._deltas: set[int] = set()

    async def read(self, port: int) -> None:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async for socket in connect(f"ws://127.0.0.1:{port}/ws?uid={self.uid}", additional_headers=headers):
            self.connects += 1
            try:
                async for frame in socket:
                    self._take(json.loads(frame), time.monotonic())
            except ConnectionClosed:
                continue

    def _take(self, event: dict[str, Any], now: float) -> None:
        is_sync, entries = self._told(event)
        if not is_sync and not entries:
            return
        self.heard.append((now, is_sync))
        numbers = {key: n for key, (n, _) in entries.items()}
        if is_sync:
            self.state = numbers
        else:
            self.state |= numbers
            self.doubled += event["id"] in self._ids or bool(self._deltas & set(numbers.values()))
            self._deltas |= set(numbers.values())
        self._ids.add(event["id"])

    def first_after(self, moment: float) -> tuple[float, bool] | None:
        """The first event after a moment: how much later it came, and whether it was a sync."""
        return next(((at - moment, sync) for at, sync in self.heard if at > moment), None)


@asynccontextmanager
async def watching(port: int, source: Source, uids: list[str]) -> AsyncIterator[list[Consumer]]:
    """A consumer for each user, each with its first state."""
    consumers = [Consumer(uid, source) for uid in uids]
    tasks = [asyncio.create_task(consumer.read(port)) for consumer in consumers]
    try:
        while not all(consumer.heard for consumer in consumers):
            await asyncio.sleep(0.02)
        yield consumers
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
