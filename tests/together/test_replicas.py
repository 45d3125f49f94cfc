"""Two whole services on one Valkey: whoever connects, and whichever replica listens, a sync comes before any delta."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis
from support import Recorded
from websockets.asyncio.client import connect

from callboard import Event, Listener, User, event_id, hookimpl, listener
from callboard import Service as Namespace
from callboard.fleet.listeners import Listeners
from callboard.fleet.rendezvous import weight
from callboard.testing import Service, serving
from callboard_local import ValkeyServer

pytestmark = pytest.mark.anyio

OWN, THREAD = "counting.own", "counting.chat"


class Source:
    """A number that only grows, and who is told of it."""

    def __init__(self) -> None:
        self.number = 0
        self.feeds: list[asyncio.Queue[int]] = []

    def grow(self) -> None:
        self.number += 1
        for feed in self.feeds:
            feed.put_nowait(self.number)

    def sync(self, user: User, kind: str) -> list[Event]:
        return [Event(type=f"{kind}.sync", uid=user.uid, payload={"n": self.number})]

    async def changes(self, user: User, kind: str) -> AsyncIterator[Event]:
        feed: asyncio.Queue[int] = asyncio.Queue()
        self.feeds.append(feed)
        try:
            while True:
                number = await feed.get()
                yield Event(id=event_id(kind, number), type=f"{kind}.add", uid=user.uid, payload={"n": number})
        finally:
            self.feeds.remove(feed)


class Plugin:
    """The same source behind every replica."""

    def __init__(self, source: Source) -> None:
        class Counting(Namespace):
            namespace = "COUNTING"

            @listener(name="own")
            class Own(Listener["Counting"]):
                async def snapshot(self, user: User) -> list[Event]:
                    return source.sync(user, "notif")

                def changes(self, user: User) -> AsyncIterator[Event]:
                    return source.changes(user, "notif")

            @listener(name="chat", per="thread")
            class Chat(Listener["Counting"]):
                async def snapshot(self, user: User) -> list[Event]:
                    return source.sync(user, "chat")

                def changes(self, user: User) -> AsyncIterator[Event]:
                    return source.changes(user, "chat")

        self._services = [Counting]

    @hookimpl
    def register_services(self) -> Sequence[type[Namespace]]:
        return self._services


class Page:
    """What a user's page receives, checked as it comes: the sync first, then no number left out, no old fence."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.state: dict[str, int] = {}
        self.fences: dict[str, int] = {}
        self.faults: list[str] = []

    def take(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        name, number, fence = event["listener"], event["payload"]["n"], event.get("fence")
        if fence is not None and fence < self.fences.get(name, 0):
            self.faults.append(f"{name}: fence {fence} after {self.fences[name]}")
        elif fence is not None:
            self.fences[name] = fence
        if event["type"].endswith(".sync"):
            self.state[name] = number
        elif name not in self.state:
            self.faults.append(f"{name}: {number} before any sync")
        elif number > self.state[name] + 1:
            self.faults.append(f"{name}: {number} after {self.state[name]}")
        else:
            self.state[name] = max(self.state[name], number)

    def knows(self, source: Source) -> bool:
        return self.state == {OWN: source.number, f"{THREAD}:acme:-N1": source.number}


@asynccontextmanager
async def page_of(service: Service) -> AsyncIterator[Page]:
    """A page of the user ann that shows a chat thread."""
    url = f"{service.url.replace('http', 'ws')}/ws?uid=ann&space_code=acme&thread_key=-N1"
    page = Page()

    async def read() -> None:
        async with connect(url, additional_headers={"Authorization": "Bearer test"}, proxy=None) as client:
            async for text in client:
                page.take(json.loads(text))

    task = asyncio.create_task(read())
    try:
        yield page
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled(), "the socket lived as long as its page"


async def eventually(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def replicas(server: ValkeyServer, source: Source, *logs: Recorded) -> AsyncIterator[list[Service]]:
    environ = {"LISTENERS_REDIS_HOST": server.host, "LISTENERS_REDIS_PORT": str(server.port)}
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                serving(Plugin(source), environ={**environ, "LISTENERS_REPLICA": str(number)}, telemetry=log.telemetry)
            )
            for number, log in enumerate(logs)
        ]


def listeners(service: Service) -> Listeners:
    return service.callboard.listeners


def listening(service: Service) -> bool:
    return all(listeners(service).is_active("ann", name) for name in (OWN, THREAD))


async def expire_leases(server: ValkeyServer) -> None:
    """As if their owner had not renewed them for their time."""
    async with Redis(host=server.host, port=server.port) as client:
        for key in await client.keys("callboard:lease:listener:*"):
            await client.hset(key, "expires", "1")


@pytest.mark.parametrize("fenced", [True, False])
async def test_every_connection_and_take_over_begins_with_a_sync(own_valkey: ValkeyServer, fenced: bool) -> None:
    source = Source()
    async with replicas(own_valkey, source, Recorded(), Recorded()) as both, AsyncExitStack() as stack:
        one, two = sorted(both, key=lambda each: weight("ann", listeners(each)._members.me.id), reverse=True)
        first = await stack.enter_async_context(page_of(one))
        await eventually(lambda: listening(one) and len(source.feeds) == 2)
        source.grow()
        second = await stack.enter_async_context(page_of(two))
        await eventually(lambda: first.knows(source) and second.knows(source))
        assert not listening(two)

        if not fenced:  # the control
            for service in (one, two):
                service.callboard.hub._is_stale = lambda key, fence: False  # type: ignore[method-assign]
        # A process that hangs and wakes up: it listens, and knows of nothing.
        for loop in (*listeners(one)._loops, listeners(one)._members._task):
            assert loop is not None
            loop.cancel()
        await expire_leases(own_valkey)
        for _ in range(2):  # the other one still counts as alive
            await listeners(two)._attendance.scan()
        await eventually(lambda: listening(two) and len(source.feeds) == 4)
        for _ in range(3):
            source.grow()
        await eventually(lambda: first.knows(source) and second.knows(source))
        taken_over = {row["fence"] for row in listeners(two).status()}
        for page in (first, second):
            await eventually(lambda: set(page.fences.values()) == taken_over)  # noqa: B023 - awaited in the loop

        async with page_of(one) as third:
            await eventually(lambda: third.knows(source))
            source.grow()
            await eventually(lambda: all(page.knows(source) for page in (first, second, third)))
            assert third.faults == []
        if fenced:
            assert first.faults == second.faults == []
        else:
            await eventually(lambda: first.faults and second.faults)
            assert all("fence" in fault for fault in (*first.faults, *second.faults))


@pytest.mark.parametrize("within_grace", [True, False])
async def test_a_page_reload_within_the_grace_tears_nothing_down(own_valkey: ValkeyServer, within_grace: bool) -> None:
    source, log = Source(), Recorded()
    async with replicas(own_valkey, source, log) as (service,):
        async with page_of(service) as page:
            await eventually(lambda: listening(service) and page.knows(source))
            async with httpx.AsyncClient(base_url=service.url, headers={"Authorization": "Bearer test"}) as client:
                rows = {row["listener"]: row["thread"] for row in (await client.get("/debug")).json()["listeners"]}
                assert rows == {OWN: None, THREAD: {"space_code": "acme", "thread_key": "-N1", "mode": "auto"}}
                assert (await client.get("/healthz")).json()["listeners_count"] == 2
        before = fences_of(service)
        await eventually(lambda: not service.callboard.websockets.connections)
        await eventually(lambda: "ann" in listeners(service)._attendance._gone_since)
        if not within_grace:  # the control
            listeners(service)._attendance._grace_s = 0.0
        await listeners(service)._attendance.check()
        if not within_grace:
            await eventually(lambda: not listeners(service).status())
        async with page_of(service) as page:
            await eventually(lambda: listening(service) and page.knows(source))
            await listeners(service)._attendance.check()
            source.grow()
            await eventually(lambda: page.knows(source))
            assert page.faults == []
            assert (fences_of(service) == before) is within_grace
            assert len(log.lines("listener_attached")) == (2 if within_grace else 4)
    assert log.lines("listener_error") == []


def fences_of(service: Service) -> dict[str, int]:
    return {row["listener"]: row["fence"] for row in listeners(service).status()}
