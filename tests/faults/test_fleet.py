"""The harness itself."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from faults.fleet import Fleet
from faults.page import Page

from callboard_local import FaultProxy, ValkeyServer

pytestmark = pytest.mark.anyio


async def test_replicas_share_one_redis_and_the_truth_counts(own_valkey: ValkeyServer) -> None:
    async with Fleet(own_valkey, count=2) as fleet:
        one, two = fleet.replicas
        assert {(await each.call("LEDGER.whoami"))["data"] for each in (one, two)} == {"r1", "r2"}
        replies = await asyncio.gather(
            *(each.call("LEDGER.append", "a", hold_s=0.2, user="ann", key="k") for each in (one, two))
        )
        assert [reply["data"] for reply in replies] == [1, 1]
        assert await fleet.executions("a") == 1
        assert (await one.call("LEDGER.put", "b", 7))["data"] == 7
        assert (await two.call("LEDGER.read", "b"))["data"] == 7
        assert (await two.call("LEDGER.block_write", "c", 0.01))["data"] == 1
        assert one.cost.fds > 5


async def test_a_page_follows_the_source_and_survives_its_replica(own_valkey: ValkeyServer) -> None:
    async with Fleet(own_valkey, count=2) as fleet:
        one, two = fleet.replicas
        urls = [one.ws_url]
        async with Page("ann", lambda: urls[-1]) as page:
            await page.until(lambda page: page.number == 0)
            assert await fleet.grow("ann") == 1
            await page.until(lambda page: page.number == 1)
            await two.call("LEDGER.notify", "ann", 5)
            await page.until(lambda page: page.told == [5])
            urls.append(two.ws_url)
            assert await one.stop() == 0
            await page.until(lambda page: page.connects == 2)
            await fleet.grow("ann")
            await page.until(lambda page: page.number == 2)
            assert page.closed == [3001]
            assert page.breaches == []
        assert await fleet.number("ann") == 2


async def test_a_replica_behind_a_proxy_is_killed_and_comes_back(own_valkey: ValkeyServer) -> None:
    async with FaultProxy(own_valkey.host, own_valkey.port) as proxy, Fleet(proxy) as fleet:
        (one,) = fleet.replicas
        assert proxy.open >= 1
        await one.kill()
        with pytest.raises(httpx.TransportError):
            await one.call("LEDGER.whoami")
        await one.restart()
        assert (await one.call("LEDGER.whoami"))["data"] == "r1"


def test_a_page_knows_a_breach_when_it_sees_one() -> None:
    page = Page("ann", lambda: "")
    told = {"uid": "ann", "listener": "ledger.numbers", "payload": {"n": 1}}
    page.take({**told, "id": "1", "type": "count.add"})
    page.take({**told, "id": "2", "type": "count.sync", "fence": 8})
    page.take({**told, "id": "3", "type": "count.add", "fence": 7})
    page.take({**told, "id": "4", "type": "count.add", "fence": 8, "payload": {"n": 3}})
    page.take({**told, "id": "4", "type": "count.add", "fence": 8, "payload": {"n": 3}})
    page.take({"uid": "bob", "id": "5", "type": "count.told", "payload": {"n": 1}})
    assert page.breaches == ["1 before any sync", "stale: fence 7 after 8", "3 after 1", "an event of bob"]
    assert page.duplicates == 1
