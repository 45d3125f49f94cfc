"""A consumer that reads Redis, in a process of its own: `python -m benchmarks.subscriber PORT SOURCE`."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from typing import Any

from redis.asyncio import Redis

from benchmarks.processes import serve
from benchmarks.sources import SOURCES


class Subscriber:
    """The deltas on all users' channels: which writes, how often, how long after they were sent."""

    def __init__(self, source: str) -> None:
        self._told = SOURCES[source](None).told
        self._times: list[float] = []
        self._heard: Counter[int] = Counter()

    async def read(self, port: int) -> None:
        async with Redis(port=port) as redis, redis.pubsub() as pubsub:
            await pubsub.psubscribe("user:*", "msg:*", "chat:*")
            while True:
                message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=None)
                if message is not None:
                    self._take(json.loads(message["data"]), time.monotonic())

    def _take(self, event: dict[str, Any], now: float) -> None:
        is_sync, entries = self._told(event)
        for n, sent_at in () if is_sync else entries.values():
            self._heard[n] += 1
            self._times.append((now - sent_at) * 1000)

    async def report(self) -> dict[str, Any]:
        """What was heard since the last report."""
        report = {"ms": self._times, "heard": list(self._heard.items())}
        self._times, self._heard = [], Counter()
        return report

    async def heard(self) -> int:
        return len(self._heard)


async def main(port: str, source: str) -> None:
    subscriber = Subscriber(source)
    async with asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(subscriber.read(int(port)))
        await serve({"report": subscriber.report, "heard": subscriber.heard})
        reading.cancel()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
