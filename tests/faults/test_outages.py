"""Redis is killed, away for a minute, stopped: what replicas answer meanwhile, and how they come back."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack

import pytest
from faults.calls import keyed_writes, reads
from faults.ear import UNWATCHED, ear, eventually
from faults.fleet import Fleet
from faults.gauges import metric, syncs, until_bus
from faults.page import Page
from redis.asyncio import Redis

from callboard_local import ValkeyServer
from callboard_local.fault_figures import Fault

pytestmark = pytest.mark.anyio


async def get(stock: Redis) -> object:
    return await stock.get("k")


@pytest.mark.fault(row=1)
async def test_redis_is_killed_and_back_in_a_second(own_valkey: ValkeyServer, fault: Fault) -> None:
    async with Fleet(own_valkey, count=2) as fleet, AsyncExitStack() as stack:
        pages = [
            await stack.enter_async_context(Page(f"u{number}", lambda each=each: each.ws_url))  # type: ignore[misc]
            for number in range(10)
            for each in fleet.replicas
        ]
        await eventually(lambda: all(page.number is not None for page in pages))
        writes = [await stack.enter_async_context(keyed_writes(each)) for each in fleet.replicas]
        told = 0

        async def grow_all() -> None:
            nonlocal told
            while True:
                for number in range(10):
                    await fleet.grow(f"u{number}")
                    told += 1
                await asyncio.sleep(0.05)

        growing = asyncio.create_task(grow_all())
        await eventually(lambda: all((page.number or 0) > 5 for page in pages))
        before = [syncs(page) for page in pages]
        began = [len(each.outcomes) for each in writes]
        await own_valkey.kill()
        await asyncio.gather(*(until_bus(each, "down") for each in fleet.replicas))
        await asyncio.sleep(1)
        await own_valkey.restart()
        back_at = time.monotonic()
        await eventually(lambda: all(syncs(page) > count for page, count in zip(pages, before, strict=True)))
        signalled_s = time.monotonic() - back_at
        await asyncio.gather(*(each.until("OK") for each in writes))
        growing.cancel()
        await asyncio.wait({growing})
        grown_at = time.monotonic()
        for number in range(10):
            final = await fleet.number(f"u{number}")
            for page in pages[2 * number : 2 * number + 2]:
                await page.until(lambda page, final=final: page.number == final)  # type: ignore[misc]
        caught_up_s = time.monotonic() - grown_at
        refused = [
            each for calls, start in zip(writes, began, strict=True) for each in calls.outcomes[start:]
            if each.code != "OK"
        ]  # fmt: skip
        acknowledged = [each for calls in writes for each in calls.outcomes if each.code == "OK"]
        runs = [await fleet.executions(each.name) for each in acknowledged]
        adds = sum(len({e["id"] for e in page.events if e["type"] == "count.add"}) for page in pages)
        fault.figure(
            lost=2 * told - adds, signalled=len(pages), signalled_s=signalled_s, caught_up_s=caught_up_s,
            refused=len(refused), last_refusal_s=max(each.at for each in refused) - back_at,
            refusal_p99_s=max(each.took_s for each in refused),
        )  # fmt: skip
        assert {each.code for each in refused} == {"UNAVAILABLE"}
        assert caught_up_s < 8  # a lease is renewed every ten seconds, a session every thirty: nobody waited for that
        assert set(runs) == {1}
        assert 2 * told > adds
        assert [page.breaches for page in pages] == [[]] * len(pages)
        assert [page.closed for page in pages] == [[]] * len(pages)


@pytest.mark.fault(row=1, control=True)
async def test_a_stock_client_loses_events_and_says_nothing(own_valkey: ValkeyServer, fault: Fault) -> None:
    types: list[str] = []
    heard: list[int] = []
    async with (
        Redis(port=own_valkey.port) as subscriber,
        Redis(port=own_valkey.port) as publisher,
        subscriber.pubsub() as pubsub,
    ):
        await pubsub.subscribe("user:u")

        async def listen() -> None:
            async for message in pubsub.listen():
                types.append(message["type"])
                if message["type"] == "message":
                    heard.append(int(message["data"]))
                    if heard[-1]:
                        return

        listening = asyncio.create_task(listen())
        await eventually(lambda: types)
        await publisher.publish("user:u", "0")
        await eventually(lambda: heard)
        await own_valkey.restart()
        sent = 0
        async with asyncio.timeout(30):
            while not listening.done():
                sent += 1
                await publisher.publish("user:u", str(sent))
        await listening
    fault.figure(lost=heard[-1] - 1, told_of="nothing but another `subscribe`")
    assert types == ["subscribe", "message", "subscribe", "message"]  # and no error
    assert heard[1] > 1


@pytest.mark.timeout(240)
@pytest.mark.fault(row=2, control="within")
async def test_redis_is_down_for_a_minute(own_valkey: ValkeyServer, fault: Fault) -> None:
    async with Fleet(own_valkey) as fleet, Page("ann", lambda: fleet.replicas[0].ws_url) as page:
        (one,) = fleet.replicas
        await page.until(lambda page: page.number == 0)
        async with reads(one) as read, keyed_writes(one) as written:
            await asyncio.gather(*(each.until("OK") for each in (read, written)))
            before = syncs(page)
            start = one.cost
            await own_valkey.kill()
            await until_bus(one, "down")
            began = time.monotonic()
            await written.until("UNAVAILABLE")
            since = len(read.outcomes), len(written.outcomes)
            lags, costs = [0.0], [start]
            async with Redis(port=own_valkey.port) as stock:
                control = asyncio.create_task(get(stock))
                control_began = time.monotonic()
                await written.until("UNAVAILABLE")
                assert not control.done()  # the stock client still tries, again and again
                await asyncio.wait({control})
                stock_s = time.monotonic() - control_began
                assert control.exception() is not None
            while time.monotonic() - began < 60:
                lags.append(await metric(one, "callboard_event_loop_lag_seconds"))
                costs.append(one.cost)
                await asyncio.sleep(1)
            assert read.codes(since[0]) == {"OK": len(read.outcomes) - since[0]}
            assert written.codes(since[1]) == {"UNAVAILABLE": len(written.outcomes) - since[1]}
            refused_s = written.took(0.99, since[1])
            read_s = read.took(0.99, since[0])
            await own_valkey.restart()
            back_at = time.monotonic()
            await written.until("OK")
            await eventually(lambda: syncs(page) > before)
        fault.figure(
            refusals=written.codes()["UNAVAILABLE"], refusal_p99_s=refused_s, stock_refusal_s=stock_s,
            reads=len(read.outcomes), read_p99_s=read_s, loop_lag_max_s=max(lags),
            recovery_s=time.monotonic() - back_at, threads_grown=max(cost.threads for cost in costs) - start.threads,
            fds_grown=max(cost.fds for cost in costs) - start.fds,
            mib_grown=(costs[-1].rss - start.rss) / 2**20,
        )  # fmt: skip
        assert max(lags) < 0.5  # 0.1 on a machine of its own
        assert max(cost.threads for cost in costs) <= start.threads + 2
        assert max(cost.fds for cost in costs) <= start.fds + 4
        assert (page.breaches, page.closed) == ([], [])


@pytest.mark.timeout(240)
@pytest.mark.fault(row=3, control="within")
async def test_redis_is_stopped_for_half_a_minute(own_valkey: ValkeyServer, fault: Fault) -> None:
    async with (
        Fleet(own_valkey, count=2) as fleet,
        Page("ann", lambda: fleet.replicas[0].ws_url) as page,
        ear(own_valkey, **UNWATCHED) as control,
        Redis(port=own_valkey.port) as stock,
    ):
        one, two = fleet.replicas
        await page.until(lambda page: page.number == 0)
        async with reads(one) as read, keyed_writes(one) as written:
            await written.until("OK")
            await stock.get("k")
            since = len(written.outcomes)
            before = syncs(page)
            own_valkey.pause()
            stopped_at = time.monotonic()
            hanging = asyncio.create_task(get(stock))
            detected = await asyncio.gather(*(until_bus(each, "down") for each in (one, two)))
            assert control.bus.state == "ok"  # nobody told it
            lags = [0.0]
            for _ in range(30):
                if time.monotonic() - stopped_at >= 30:
                    break
                lags.append(await metric(one, "callboard_event_loop_lag_seconds"))
                await asyncio.sleep(1)
            assert not hanging.done()  # the stock client has a minute's patience
            assert control.bus.state == "ok"
            own_valkey.resume()
            back_at = time.monotonic()
            await written.until("OK")
            await eventually(lambda: syncs(page) > before)
            recovery_s = time.monotonic() - back_at
            await hanging
            refused = [each for each in written.outcomes[since:] if each.code != "OK"]
        fault.figure(
            detect_s=max(detected), worst_call_s=max(each.took_s for each in refused), refused=len(refused),
            loop_lag_max_s=max(lags), reads=len(read.outcomes), read_p99_s=read.took(0.99), recovery_s=recovery_s,
            stock_call_s=f">{back_at - stopped_at:.0f}",
        )  # fmt: skip
        assert max(detected) <= 15
        assert {each.code for each in refused} == {"UNAVAILABLE"}
        assert max(each.took_s for each in refused) < 3 + 2  # the claim's one request to Redis, and a busy machine
        assert max(lags) < 0.5
        assert (page.breaches, page.closed) == ([], [])
