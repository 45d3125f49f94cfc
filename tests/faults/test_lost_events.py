"""Events that Redis drops, or whose delivery nobody confirms: a gap is told, and nobody sees one twice."""

from __future__ import annotations

import asyncio
import json

import pytest
from faults.ear import eventually
from faults.fleet import Fleet
from faults.gauges import metric, syncs, until_bus
from faults.page import Page
from redis.asyncio import Redis

from callboard_local import FaultProxy, ValkeyServer
from callboard_local.fault_figures import Fault

pytestmark = pytest.mark.anyio

_ROUNDS = 10
_FLOOD = 20_000


# -- the reply to a PUBLISH is lost -----------------------------------------------------------------------------------


@pytest.mark.fault(row=5)
async def test_an_event_whose_reply_is_lost_is_not_sent_twice(own_valkey: ValkeyServer, fault: Fault) -> None:
    async with (
        FaultProxy(own_valkey.host, own_valkey.port) as proxy,
        Fleet(proxy, own_valkey) as fleet,
        Page("ann", lambda: fleet.replicas[1].ws_url) as page,
    ):
        one = fleet.replicas[0]
        await page.until(lambda page: page.number == 0)
        codes = []
        for number in range(_ROUNDS):
            proxy.drop_reply(b"count.told")
            first, again = [
                await one.call("LEDGER.notify", "ann", number, user="ann", key=f"k{number}") for _ in range(2)
            ]
            codes.append(first["error"]["code"])
            assert again["error"]["code"] == first["error"]["code"]  # the same key, the same answer
            assert proxy.dropped == number + 1
        await one.call("LEDGER.notify", uid="ann", n=_ROUNDS)
        await page.until(lambda page: _ROUNDS in page.told)
        copies = sum(event["type"] == "count.told" for event in page.events)
        fault.figure(replies_lost=proxy.dropped, events=_ROUNDS + 1, copies=copies, shown=len(page.told))
        assert set(codes) == {"UNAVAILABLE"}
        assert page.told == list(range(_ROUNDS + 1))
        assert copies == _ROUNDS + 1


@pytest.mark.fault(row=5)
async def test_a_listeners_event_whose_reply_is_lost_is_made_up_for(own_valkey: ValkeyServer, fault: Fault) -> None:
    async with (
        FaultProxy(own_valkey.host, own_valkey.port) as proxy,
        Fleet(proxy) as fleet,
        Page("ann", lambda: fleet.replicas[0].ws_url) as page,
    ):
        await page.until(lambda page: page.number == 0)
        await fleet.grow("ann")
        await page.until(lambda page: page.number == 1)
        before = syncs(page)
        proxy.drop_reply(b"count.add")
        await fleet.grow("ann")
        await page.until(lambda page: page.number == 2)
        await fleet.grow("ann")  # not sent: the listener is mute until its sync is out
        made_up_s = await eventually(lambda: page.number == 3)
        copies = [event["payload"]["n"] for event in page.events if event["type"] == "count.add"].count(2)
        fault.figure(replies_lost=proxy.dropped, copies=copies, made_up_s=made_up_s)
        assert syncs(page) > before
        assert (proxy.dropped, copies, page.duplicates, page.breaches) == (1, 1, 0, [])


@pytest.mark.fault(row=5, control=True)
async def test_a_stock_client_publishes_twice(own_valkey: ValkeyServer, fault: Fault) -> None:
    async with (
        FaultProxy(own_valkey.host, own_valkey.port) as proxy,
        Fleet(own_valkey) as fleet,
        Page("ann", lambda: fleet.replicas[0].ws_url) as page,
        Redis(host=proxy.host, port=proxy.port) as stock,
    ):
        await page.until(lambda page: page.number == 0)
        for number in range(_ROUNDS + 1):
            if number < _ROUNDS:
                proxy.drop_reply(b"count.told")
            await stock.publish("user:ann", told(number))
        await page.until(lambda page: _ROUNDS in page.told)
        copies = sum(event["type"] == "count.told" for event in page.events)
        fault.figure(replies_lost=proxy.dropped, events=_ROUNDS + 1, copies=copies, shown=len(page.told))
        assert copies == 2 * _ROUNDS + 1
        assert page.told == list(range(_ROUNDS + 1))  # the ids save those who heed them


def told(number: int) -> str:
    """An event of a foreign publisher."""
    return json.dumps({"id": f"told {number}", "type": "count.told", "uid": "ann", "payload": {"n": number}})


# -- a subscriber that the server finds too slow ----------------------------------------------------------------------


@pytest.mark.fault(row=12)
async def test_redis_drops_a_replica_that_does_not_read(own_valkey: ValkeyServer, fault: Fault) -> None:
    async with (
        Fleet(own_valkey, count=2) as fleet,
        Page("ann", lambda: fleet.replicas[0].ws_url) as page,
        Page("bob", lambda: fleet.replicas[0].ws_url) as loud,
        Redis(port=own_valkey.port) as sender,
    ):
        one = fleet.replicas[0]
        await page.until(lambda page: page.number == 0)
        await loud.until(lambda page: page.number == 0)
        await sender.config_set("client-output-buffer-limit", "pubsub 1mb 256kb 5")
        before, heard = syncs(page), len(page.told)
        one.pause()
        await flood(sender, "user:bob")
        for number in range(50):
            assert await sender.publish("user:ann", told(number)) == 0  # the replica is subscribed no more
        one.resume()
        signalled_s = await eventually(lambda: syncs(page) > before)
        await until_bus(one, "ok")
        fault.figure(
            lost=50 - (len(page.told) - heard), signalled=syncs(page) - before, signalled_s=signalled_s,
            gaps=await metric(one, "callboard_bus_gaps_total"),
        )  # fmt: skip
        assert page.told == []
        assert await metric(one, "callboard_bus_gaps_total") >= 1
        await sender.publish("user:ann", told(50))
        await page.until(lambda page: page.told == [50])
        assert (page.breaches, page.closed) == ([], [])


@pytest.mark.fault(row=12, control=True)
async def test_a_stock_client_that_does_not_read_is_not_told(own_valkey: ValkeyServer, fault: Fault) -> None:
    async with (
        Redis(port=own_valkey.port) as stock,
        Redis(port=own_valkey.port) as sender,
        stock.pubsub(ignore_subscribe_messages=True) as pubsub,
    ):
        await sender.config_set("client-output-buffer-limit", "pubsub 1mb 256kb 5")
        await pubsub.subscribe("user:bob")
        while not (await sender.pubsub_numsub("user:bob"))[0][1]:
            await asyncio.sleep(0)
        await flood(sender, "user:bob")
        heard: list[bytes] = []

        async def listen() -> None:
            async for message in pubsub.listen():
                heard.append(message["data"])
                if message["data"] == b"last":
                    return

        listening = asyncio.create_task(listen())
        async with asyncio.timeout(40):
            while not listening.done():
                await sender.publish("user:bob", "last")
        await listening  # by now, and not by an error
    fault.figure(sent=_FLOOD, lost=_FLOOD - len(heard) + 1, told_of="nothing")
    assert len(heard) < _FLOOD


async def flood(sender: Redis, channel: str) -> None:
    """20 MB in one go: more than the server keeps for a subscriber that does not read."""
    script = f"local m = string.rep('x', 1000) for i = 1, {_FLOOD} do redis.call('PUBLISH', KEYS[1], m) end"
    await sender.eval(script, 1, channel)
