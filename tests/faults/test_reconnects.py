"""Two thousand sockets that come back at once, and connections that a load balancer finds idle."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from faults.fleet import Fleet, Replica
from faults.leftovers import left, sessions
from faults.page import Page
from faults.screens import Screens
from redis.asyncio import Redis

from callboard_local import FaultProxy, ValkeyServer
from callboard_local.fault_figures import Fault

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(280)]

SOCKETS = 2_000
TTL_S = 15
ENVIRON = {"LISTENERS_TTL_SECONDS": str(TTL_S), "LISTENERS_HEARTBEAT_INTERVAL": "5"}


class Door:
    """What stands before a replica, as a load balancer does, and who comes in."""

    def __init__(self, proxy: FaultProxy) -> None:
        self.url = f"ws://{proxy.address}/ws"
        self.peak_per_s = 0.0
        self._proxy = proxy

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def _watch(self) -> None:
        while True:
            accepted, began = self._proxy.accepted, time.monotonic()
            await asyncio.sleep(0.5)
            self.peak_per_s = max(self.peak_per_s, (self._proxy.accepted - accepted) / (time.monotonic() - began))


async def until(condition: Callable[[], Awaitable[object]], within_s: float = 90) -> float:
    """Wait until it holds; how many seconds that took."""
    began = time.monotonic()
    async with asyncio.timeout(within_s):
        while not await condition():
            await asyncio.sleep(0.2)
    return time.monotonic() - began


async def online(replica: Replica) -> list[str]:
    """All that `REGISTRY.online_users` names, with what it names twice."""
    users: list[str] = []
    cursor = None
    while True:
        page = (await replica.call("REGISTRY.online_users", cursor=cursor, limit=1_000))["data"]
        users += page["users"]
        cursor = page["cursor"]
        if cursor is None:
            return users


@pytest.mark.fault(row=24)
async def test_all_come_back_at_once(own_valkey: ValkeyServer, fault: Fault) -> None:
    """First every connection is reset, then the replica is killed and started anew."""
    async with AsyncExitStack() as stack:
        fleet = await stack.enter_async_context(Fleet(own_valkey, count=1, environ=ENVIRON))
        (one,) = fleet.replicas
        proxy = await stack.enter_async_context(FaultProxy("127.0.0.1", one.port))
        door = Door(proxy)
        async with Screens(SOCKETS, lambda: door.url, longest_pause_s=1) as screens:
            async with door.watched():
                proxy.reset()
                back_s = await screens.until(lambda page: page.connects == 2 and page.is_synced)
            refused = sum(len(page.closed) - 1 for page in screens.pages)
            right_after = await sessions(own_valkey)
            named = await online(one)

            closed = sum(len(page.closed) for page in screens.pages)
            connects = {page: page.connects for page in screens.pages}
            for page in screens.pages:
                page.longest_pause_s = 10  # or the attempts that fail meanwhile are all that this process does
            await one.restart()
            after_restart_s = await screens.until(lambda page: page.is_synced and page.connects > connects[page])
            while_away = sum(len(page.closed) for page in screens.pages) - closed - SOCKETS
            quiet = [len(page.closed) for page in screens.pages]
            after_kill = await sessions(own_valkey)
            for uid in ("user0", "user1999"):
                await fleet.grow(uid)
            grown = [page for page in screens.pages if page.uid in ("user0", "user1999")]
            for page in grown:
                await page.until(lambda page: page.number == 1)
            assert [len(page.closed) for page in screens.pages] == quiet
        left_s = await until(lambda: no_session(own_valkey))
        offline_s = left_s + await until(lambda: nobody(own_valkey))
        assert await online(one) == []
    fault.figure(
        back_s=back_s, peak_accepts_per_s=door.peak_per_s, refused=refused, after_restart_s=after_restart_s,
        refused_while_away=while_away, left_s=left_s, offline_s=offline_s, ttl_s=TTL_S,
        wrong_presence=len(set(screens.users) ^ set(right_after)),
    )  # fmt: skip
    assert right_after == after_kill == dict.fromkeys(screens.users, 1)
    assert sorted(named) == sorted(screens.users)
    assert {code for page in screens.pages for code in page.closed} == {1006}  # nobody was sent away
    assert screens.breaches == []


async def no_session(valkey: ValkeyServer) -> bool:
    return not await sessions(valkey)


async def nobody(valkey: ValkeyServer) -> bool:
    """Whether nothing is left of anybody's being there."""
    async with Redis(host=valkey.host, port=valkey.port) as redis:
        return not [key async for key in redis.scan_iter("callboard:session:*")] and not any(
            "presence:sessions" in key or "{online}" in key for key in await left(valkey)
        )


@pytest.mark.fault(row=24)
async def test_after_a_gap_not_all_are_synced_in_one_moment(own_valkey: ValkeyServer, fault: Fault) -> None:
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(FaultProxy(own_valkey.host, own_valkey.port))
        fleet = await stack.enter_async_context(Fleet(proxy, count=1, environ=ENVIRON))
        (one,) = fleet.replicas
        async with Screens(SOCKETS, lambda: one.ws_url) as screens:
            await until(lambda: one.is_ready(strict=True))
            before = {page: len(page.events) for page in screens.pages}
            proxy.reset()
            synced_s = await screens.until(lambda page: len(page.events) > before[page])
            times = sorted(page.last_event_at for page in screens.pages)
            spread_s = times[-1] - times[0]
            fault.figure(synced_s=synced_s, spread_s=spread_s)
            assert all(page.events[-1]["type"] == "count.sync" for page in screens.pages)
            assert spread_s > 1
            assert screens.breaches == []
            assert not any(page.closed for page in screens.pages)


async def idle_connection(own_valkey: ValkeyServer, ping_s: int, idle_limit_s: float) -> Page:
    """What a page has seen of a proxy that cuts idle connections, in three times the time that it allows."""
    async with AsyncExitStack() as stack:
        environ = {"LISTENERS_PING_INTERVAL_S": str(ping_s)}
        fleet = await stack.enter_async_context(Fleet(own_valkey, count=1, environ=environ))
        proxy = await stack.enter_async_context(FaultProxy("127.0.0.1", fleet.replicas[0].port))
        proxy.idle_limit_s = idle_limit_s
        page = Page("ann", lambda: f"ws://{proxy.address}/ws")
        async with page:
            await page.until(lambda page: page.number == 0)
            since = time.monotonic()
            await page.until(lambda page: page.closed or time.monotonic() - since > 3 * idle_limit_s, within_s=90)
    return page


@pytest.mark.fault(row=24)
async def test_pings_keep_an_idle_connection(own_valkey: ValkeyServer, fault: Fault) -> None:
    """A load balancer's 60 s and our 20 s, a tenth of them."""
    page = await idle_connection(own_valkey, ping_s=2, idle_limit_s=6)
    fault.figure(cuts=len(page.closed), ping_s=2, idle_limit_s=6)
    assert (page.closed, page.connects) == ([], 1)


@pytest.mark.fault(row=24, control=True)
async def test_without_pings_an_idle_connection_is_cut(own_valkey: ValkeyServer, fault: Fault) -> None:
    page = await idle_connection(own_valkey, ping_s=0, idle_limit_s=6)
    fault.figure(cuts=len(page.closed), ping_s=0, idle_limit_s=6)
    assert page.closed == [1006]
