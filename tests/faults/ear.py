"""A bus in the test's own process: what it hears, how often it was told of a gap, and whether its loop lives."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Self

from faults.fleet import Address
from support import Recorded

from callboard.connections import Connections
from callboard.events.bus import Bus
from callboard.messages import Event
from callboard.settings import Settings

BRISK: dict[str, Any] = {"probe_interval_s": 0.05, "probe_timeout_s": 0.5, "backoff_s": (0.01, 0.05)}
"""So that a test sees many rebuilds in a short time."""
UNWATCHED: dict[str, Any] = {"probe_interval_s": 3_600}
"""A control: after its first proof the bus relies on what the connection itself says."""
_BEAT_S = 0.01


class Ear:
    """`story` is what happened, in order: the ids of events, and None for each gap."""

    def __init__(self, bus: Bus, connections: Connections, recorded: Recorded) -> None:
        self.bus = bus
        self.connections = connections
        self.recorded = recorded
        self.story: list[str | None] = []
        bus.sink = lambda _, data: self.story.append(json.loads(data)["id"])
        bus.on_gap = lambda: self.story.append(None)

    @property
    def gaps(self) -> int:
        return self.story.count(None)

    @property
    def heard(self) -> list[str]:
        return [id_ for id_ in self.story if id_ is not None]

    async def tell(self, id_: str) -> None:
        """Publish an event to the user `u`."""
        await self.bus.publish(Event(type="count.told", uid="u", id=id_, payload={}))


@asynccontextmanager
async def ear(redis: Address, **options: Any) -> AsyncIterator[Ear]:
    """A bus that hears the user `u`; `options` are its own, those of production by default."""
    recorded = Recorded()
    settings = Settings(redis_host=redis.host, redis_port=redis.port, redis_cluster="false", replica="ear")
    async with Connections(settings, recorded.telemetry) as connections:
        bus = Bus(settings, connections, recorded.telemetry, {}, **options)
        made = Ear(bus, connections, recorded)
        async with bus:
            await bus.subscribe("user:u")
            await eventually(lambda: bus.state == "ok")
            yield made


class Pulse:
    """`async with Pulse() as pulse`: how this process's event loop fared meanwhile."""

    def __init__(self) -> None:
        self.beats = 0
        self.worst_lag_s = 0.0
        self._began = time.monotonic()

    @property
    def per_s(self) -> float:
        """Beats a second, of the hundred there would be on an idle machine."""
        return self.beats / (time.monotonic() - self._began)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._beat(), name="pulse")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})

    async def _beat(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(_BEAT_S)
            self.worst_lag_s = max(self.worst_lag_s, time.monotonic() - before - _BEAT_S)
            self.beats += 1


async def eventually(condition: Callable[[], object], within_s: float = 30) -> float:
    """Wait until it holds; how many seconds that took. TimeoutError."""
    began = time.monotonic()
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.005)
    return time.monotonic() - began


def percentile(values: list[float], share: float) -> float:
    """The value that `share` of them do not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def tasks() -> Counter[str]:
    """The names of this loop's tasks; those that asyncio named count as one."""
    return Counter(
        "unnamed" if task.get_name().startswith("Task-") else task.get_name() for task in asyncio.all_tasks()
    )
