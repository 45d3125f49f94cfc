"""Replies that never come: Redis has done what it was asked, and whoever asked does not know."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from faults.fleet import Fleet
from faults.keyed_calls import History, Write, lies
from faults.page import Page
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from support import Recorded

from callboard.connections import Connections
from callboard.errors import Unauthenticated
from callboard.fleet import scripts
from callboard.fleet.leases import _ACQUIRE, Leases
from callboard.gateway.tickets import Tickets
from callboard.settings import Secret, Settings
from callboard_local import FaultProxy, ValkeyServer
from callboard_local.fault_figures import Fault

pytestmark = [pytest.mark.anyio, pytest.mark.fault(row=5)]
TIMES = 50


@pytest.fixture
async def proxy(own_valkey: ValkeyServer) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(own_valkey.host, own_valkey.port) as proxy:
        yield proxy


@pytest.fixture
async def lossy(proxy: FaultProxy) -> AsyncIterator[Connections]:
    settings = Settings(redis_host=proxy.host, redis_port=proxy.port, redis_cluster="false")
    async with Connections(settings, Recorded().telemetry) as connections:
        yield connections


@pytest.fixture
async def fleet(proxy: FaultProxy, own_valkey: ValkeyServer) -> AsyncIterator[Fleet]:
    """Two replicas on one Valkey, the first of them behind the proxy."""
    async with Fleet(proxy, own_valkey) as fleet:
        yield fleet


@pytest.mark.timeout(240)
async def test_a_keyed_call_runs_once_whichever_reply_is_lost(proxy: FaultProxy, fleet: Fleet, fault: Fault) -> None:
    history = History()
    one, two = fleet.replicas
    for number in range(TIMES):
        write = Write(f"claim-{number}")
        proxy.drop_reply(b"callboard:idem:")
        assert (await history.attempt(one, write)).kind == "ok"
        assert (await history.attempt(two, write)).replayed
    claims = proxy.dropped
    for number in range(TIMES):
        write = Write(f"finish-{number}", arguments={"hold_s": 0.1})
        async with asyncio.TaskGroup() as group:
            running = group.create_task(history.attempt(one, write))
            while not await fleet.executions(write.name):
                await asyncio.sleep(0.005)
            proxy.drop_reply(b"callboard:idem:")
        assert running.result().kind == "ok"
        assert (await history.attempt(two, write)).replayed
    await history.count_runs(fleet)
    assert lies(history) == []
    assert (claims, proxy.dropped) == (TIMES, 2 * TIMES)
    fault.figure(
        claims_lost=claims, answers_lost=proxy.dropped - claims, executions_max=max(history.runs.values()),
        replays=sum(told.replayed for told in history.told),
    )  # fmt: skip


async def test_an_event_whose_publish_got_no_reply_is_applied_once(
    proxy: FaultProxy, fleet: Fleet, fault: Fault
) -> None:
    one, two = fleet.replicas
    async with Page("ann", lambda: two.ws_url) as page:
        await page.until(lambda page: page.number == 0)
        for n in range(TIMES):
            call: dict[str, Any] = {"user": "ann", "key": f"k{n}", "uid": "ann", "n": n}
            proxy.drop_reply(b"count.told")
            reply = await one.call("LEDGER.announce", **call)
            assert reply["error"]["code"] == "UNAVAILABLE"  # nothing is published twice by itself
            assert (await one.call("LEDGER.announce", **call))["data"] == n  # run again, for it is retry-safe
        await page.until(lambda page: page.duplicates == TIMES)
        assert page.told == list(range(TIMES))
        assert page.breaches == []
        fault.figure(publishes_lost=proxy.dropped, events_applied=len(page.told), duplicates_known=page.duplicates)


async def test_a_lease_whose_reply_was_lost_is_known_as_ones_own(
    proxy: FaultProxy, lossy: Connections, fault: Fault
) -> None:
    leases = Leases(lossy)
    await leases.acquire("callboard:lease:{warm}", "me", 30)  # the server knows the scripts
    fences = []
    for number in range(TIMES):
        proxy.drop_reply(scripts._digest(_ACQUIRE).encode())
        lease = await leases.acquire(f"callboard:lease:{{{number}}}", "me", 30)
        assert lease is not None
        fences.append(lease.fence)
        assert not lease.taken_over
        assert await leases.acquire(f"callboard:lease:{{{number}}}", "another", 30) is None
    assert proxy.dropped == len(fences) == TIMES
    fault.figure(replies_lost=proxy.dropped, leases_held=len(fences))


async def test_a_ticket_whose_reply_was_lost_opens_its_connection_and_no_other(
    proxy: FaultProxy, lossy: Connections, fault: Fault
) -> None:
    tickets = Tickets(Settings(service_token=Secret("t0ken")), lossy)
    refused = 0
    for _ in range(TIMES):
        ticket = tickets.issue("ann")
        proxy.drop_reply(b"callboard:ticket:")
        assert await tickets.redeem(ticket) == "ann"
        with pytest.raises(Unauthenticated):
            await tickets.redeem(ticket)
        refused += 1
    assert proxy.dropped == TIMES
    fault.figure(replies_lost=proxy.dropped, redeemed=TIMES, second_uses_refused=refused)


@pytest.mark.fault(row=5, control=True)
async def test_a_client_that_only_tries_again_denies_its_own_lock_and_publishes_twice(
    proxy: FaultProxy, own_valkey: ValkeyServer, fault: Fault
) -> None:
    denied, arrived = 0, 0
    async with (
        Redis(host=proxy.host, port=proxy.port, retry=Retry(NoBackoff(), 1)) as naive,
        Redis(host=own_valkey.host, port=own_valkey.port) as direct,
        direct.pubsub() as pubsub,
    ):
        await pubsub.subscribe("channel")
        assert (await pubsub.get_message(timeout=10) or {})["type"] == "subscribe"
        for number in range(TIMES):
            proxy.drop_reply(b"lock")
            denied += await naive.set(f"lock{number}", "me", nx=True) is None
            assert await direct.get(f"lock{number}") == b"me"
            proxy.drop_reply(b"channel")
            await naive.publish("channel", number)
        await direct.publish("channel", "end")
        while (await pubsub.get_message(timeout=10) or {})["data"] != b"end":
            arrived += 1
    fault.figure(locks_denied_to_their_owner=denied, published=TIMES, arrived=arrived)
    assert (denied, arrived) == (TIMES, 2 * TIMES)
