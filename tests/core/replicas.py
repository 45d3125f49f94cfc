"""Listeners on replicas that share one Redis, a source that the test turns, and what a consumer hears."""

from __future__ import annotations

import asyncio
import io
import json
import math
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from support import Address, administering, at_one_node, settings_on

from callboard.connections import Connections
from callboard.context import Context, current_context
from callboard.events.bus import Bus
from callboard.fleet.leases import Leases
from callboard.fleet.listeners import Listeners
from callboard.fleet.members import Members
from callboard.fleet.presence import Presence
from callboard.fleet.rendezvous import weight
from callboard.fleet.supervisor import Patience
from callboard.messages import Event
from callboard.service import Service, User, listener
from callboard.telemetry import Telemetry

LEASE_TTL_S = 1.2
BEAT_S = 0.3
ITEMS, LOUD = "shop.items", "shop.loud"
FIRST, SECOND, THIRD = sorted(("x", "y", "z"), key=lambda each: weight("ann", each), reverse=True)
"""Ids of replicas, in the order in which ann's listeners should run on them."""


async def eventually(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


@dataclass
class Source:
    """What the listeners under test listen to. `None` in a feed ends the stream, an exception is raised by it."""

    begun: list[User] = field(default_factory=list)
    read: list[User] = field(default_factory=list)
    closed: int = 0
    feeds: list[tuple[str, asyncio.Queue[Event | Exception | None]]] = field(default_factory=list)
    snapshot_fails_with: Exception | None = None
    snapshot_waits: asyncio.Event | None = None
    context_seen: list[Context | None] = field(default_factory=list)
    close_fails: bool = False
    close_waits: asyncio.Event | None = None

    def push(self, uid: str, thing: Event | Exception | None) -> None:
        for owner, feed in self.feeds:
            if owner == uid:
                feed.put_nowait(thing)

    def delta(self, uid: str, number: int = 1) -> None:
        self.push(uid, Event(type="notif.add", uid=uid, payload={"doc_id": f"{number}"}))

    async def snapshot(self, user: User) -> list[Event]:
        self.read.append(user)
        if self.snapshot_waits is not None:
            await self.snapshot_waits.wait()
        if self.snapshot_fails_with is not None:
            raise self.snapshot_fails_with
        return [Event(type="notif.sync", uid=user.uid, payload={"count": len(self.read)})]

    async def changes(self, user: User) -> AsyncIterator[Event]:
        feed: asyncio.Queue[Event | Exception | None] = asyncio.Queue()
        self.feeds.append((user.uid, feed))
        self.begun.append(user)
        self.context_seen.append(current_context.get(None))
        try:
            while (thing := await feed.get()) is not None:
                if isinstance(thing, Exception):
                    raise thing
                yield thing
        finally:
            if self.close_waits is not None:
                await self.close_waits.wait()
            self.feeds.remove((user.uid, feed))
            self.closed += 1
            if self.close_fails:
                raise OSError("the source's secret")


class Shop(Service):
    namespace = "SHOP"
    items_source: Source
    loud_source: Source

    def __init__(self) -> None:
        self.items_source, self.loud_source = Source(), Source()

    @listener
    class Items:
        service: Shop

        async def snapshot(self, user: User) -> list[Event]:
            return await self.service.items_source.snapshot(user)

        def changes(self, user: User) -> AsyncIterator[Event]:
            return self.service.items_source.changes(user)

    @listener(begins_with_sync=True)
    class Loud:
        service: Shop

        async def snapshot(self, user: User) -> list[Event]:
            return await self.service.loud_source.snapshot(user)

        async def changes(self, user: User) -> AsyncIterator[Event]:
            yield Event(type="loud.sync", uid=user.uid, payload={})
            async for event in self.service.loud_source.changes(user):
                yield event


@dataclass
class Replica:
    listeners: Listeners
    presence: Presence
    telemetry: Telemetry
    shop: Shop
    stream: io.StringIO

    def logged(self, event: str) -> list[dict[str, Any]]:
        lines = map(json.loads, self.stream.getvalue().splitlines())
        return [line for line in lines if line["event"] == event]

    def metric(self, name: str, listener: str = ITEMS) -> float:
        value = self.telemetry.metrics.registry.get_sample_value(name, {"listener": listener})
        return math.nan if value is None else value


@asynccontextmanager
async def replica(
    server: Address,
    *,
    name: str = "one",
    id: str | None = None,  # noqa: A002 - as in Members
    service: Shop | None = None,
    grace_s: float = 0.3,
    sweep_interval_s: float = 3_600,
    lease_ttl_s: float = LEASE_TTL_S,
    scan_interval_s: float = 0.1,
    patience: Patience | None = None,
) -> AsyncIterator[Replica]:
    settings = settings_on(server, LISTENERS_REPLICA=name)
    stream = io.StringIO()
    telemetry = Telemetry(replica=name, stream=stream)
    shop = service or Shop()
    async with AsyncExitStack() as stack:
        connections = await stack.enter_async_context(Connections(settings, telemetry))
        bus = await stack.enter_async_context(Bus(settings, connections, telemetry, {}))
        presence = await stack.enter_async_context(
            Presence(settings, connections, telemetry, ttl_s=60, sweep_interval_s=0.1)
        )
        members = Members(name, connections, telemetry, beat_s=BEAT_S, id=id)
        listeners = Listeners(
            settings, telemetry, Leases(connections), members, presence, bus,
            lease_ttl_s=lease_ttl_s, scan_interval_s=scan_interval_s, grace_s=grace_s,
            sweep_interval_s=sweep_interval_s, hand_over_interval_s=0.1,
            patience=patience or Patience(backoff_min_s=0.05, backoff_max_s=0.2),
        )  # fmt: skip
        listeners.declare("SHOP", shop)
        await stack.enter_async_context(listeners)
        yield Replica(listeners, presence, telemetry, shop, stream)


class Heard:
    """What a consumer of a user's channel receives, on a connection of its own that heals."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def of(self, type: str) -> list[dict[str, Any]]:  # noqa: A002
        return [event for event in self.events if event["type"] == type]

    async def until(self, type: str, count: int = 1) -> list[dict[str, Any]]:  # noqa: A002
        await eventually(lambda: len(self.of(type)) >= count)
        return self.of(type)


@asynccontextmanager
async def hearing(server: Address, channel: str) -> AsyncIterator[Heard]:
    heard, subscribed = Heard(), asyncio.Event()

    async def hear() -> None:
        async with at_one_node(server) as client, client.pubsub() as pubsub:
            await pubsub.subscribe(channel)
            async for message in pubsub.listen():
                if message["type"] == "subscribe":
                    subscribed.set()
                else:
                    heard.events.append(json.loads(message["data"]))

    task = asyncio.create_task(hear())
    try:
        await asyncio.wait_for(subscribed.wait(), 10)
        yield heard
    finally:
        task.cancel()
        await asyncio.wait([task])


async def lease_owner(server: Address, name: str, uid: str) -> Any:
    async with administering(server) as client:
        return await client.hget(f"callboard:lease:listener:{name}:{{{uid}}}", "owner")


def min_renewed(one: Replica) -> float:
    return min((running.supervisor.renewed_at for running in one.listeners._roster.running.values()), default=math.inf)


def fall_silent(one: Replica) -> None:
    """As a process that hangs: it neither renews nor releases, and no longer says that it lives."""
    for loop in (*one.listeners._loops, one.listeners._members._task):
        assert loop is not None
        loop.cancel()
