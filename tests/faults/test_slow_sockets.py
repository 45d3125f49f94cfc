"""Clients that do not read, beside a thousand that do."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from faults.crowd import Crowd, Stalled, told
from faults.fleet import Fleet, Replica
from redis.asyncio import Redis

from callboard_local import ValkeyServer
from callboard_local.fault_figures import Fault

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(240)]

HEALTHY, SILENT, TRICKLING = 1_000, 100, 10
SLOW = SILENT + TRICKLING
EVENT_BYTES = 100_000
ROUNDS = 30
ROUND_S = 0.5
OUTBOX_BYTES = 1_048_576
UNREAD_BYTES = 512 * 1024
"""Beside the outbox: what the server's own buffers hold for a socket, and one event more."""
NOISE_BYTES = 60_000_000
"""What a replica's memory grows by on the way, whoever reads."""


class Traffic:
    """Small events for all healthy users, every two seconds for each, from now until the end."""

    def __init__(self, redis: Redis, users: list[str]) -> None:
        self.sent = 0
        self._redis = redis
        self._users = users
        self._numbers: Counter[str] = Counter()

    async def flow(self) -> None:
        batches = 20
        while True:
            for start in range(batches):
                began = time.monotonic()
                pipeline = self._redis.pipeline(transaction=False)
                users = self._users[start::batches]
                for uid in users:
                    pipeline.publish(f"user:{uid}", told(uid, self._numbers[uid]))
                    self._numbers[uid] += 1
                await pipeline.execute()
                self.sent += len(users)
                await asyncio.sleep(max(0.0, 2 / batches - (time.monotonic() - began)))

    @asynccontextmanager
    async def flowing(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.flow())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})
            if not task.cancelled():
                task.result()


async def closed(replica: Replica) -> Counter[str]:
    """How many sockets the replica has closed, by code."""
    metrics = (await replica.client.get("/metrics")).text
    found = re.findall(r'^callboard_ws_closed_total\{code="(\w+)"\} (.+)$', metrics, re.MULTILINE)
    return Counter({code: int(float(count)) for code, count in found})


class Flood:
    """Large events for the slow users, round after round; what it does to the replica is kept."""

    def __init__(self, redis: Redis, replica: Replica) -> None:
        self.rss_before = self.rss_max = replica.cost.rss
        self.dropped_after_s: float | None = None
        self._redis = redis
        self._replica = replica

    async def run(self, users: list[str]) -> None:
        began = time.monotonic()
        for number in range(ROUNDS):
            round_began = time.monotonic()
            for uid in users:
                await self._redis.publish(f"user:{uid}", told(uid, number, "x" * EVENT_BYTES))
            await self._look(len(users), began)
            await asyncio.sleep(max(0.0, ROUND_S - (time.monotonic() - round_began)))

    async def until_dropped(self, count: int) -> float:
        """Seconds from now until all of them are closed."""
        began = time.monotonic()
        async with asyncio.timeout(60):
            while self.dropped_after_s is None:
                await self._look(count, began)
                await asyncio.sleep(0.2)
        return time.monotonic() - began

    async def _look(self, count: int, began: float) -> None:
        self.rss_max = max(self.rss_max, self._replica.cost.rss)
        if self.dropped_after_s is None and (await closed(self._replica))["3008"] >= count:
            self.dropped_after_s = time.monotonic() - began


@asynccontextmanager
async def slow_clients(replica: Replica) -> AsyncIterator[list[Stalled]]:
    """The silent ones, which read nothing, and those that read one byte a second."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(Stalled(replica.ws_url, f"slow{n}", bytes_per_s=n >= SILENT))
            for n in range(SLOW)
        ]


@pytest.mark.fault(row=23)
async def test_who_does_not_read_is_dropped_and_nobody_else_notices(own_valkey: ValkeyServer, fault: Fault) -> None:
    async with (
        Fleet(own_valkey, count=1) as fleet,
        Crowd.at(fleet.replicas[0].ws_url, "ann", HEALTHY) as crowd,
        Redis(host=own_valkey.host, port=own_valkey.port) as redis,
    ):
        (one,) = fleet.replicas
        traffic = Traffic(redis, crowd.users)
        async with traffic.flowing():
            await crowd.until_received(2 * HEALTHY)
            async with Crowd.at(one.ws_url, "fast", SLOW) as fast:  # the same load, and all is read
                await crowd.measure_anew()
                await Flood(redis, one).run(fast.users)
                before = await crowd.seen()
            async with slow_clients(one) as clients:
                await crowd.measure_anew()
                flood = Flood(redis, one)
                began = time.monotonic()
                await flood.run([client.uid for client in clients])
                if flood.dropped_after_s is None:
                    await flood.until_dropped(SLOW)
                drop_s = flood.dropped_after_s or time.monotonic() - began
                after = await crowd.seen()
                codes = Counter([await client.close_code(30) for client in clients])
        seen = await crowd.until_received(traffic.sent)
        grown = flood.rss_max - flood.rss_before
        fault.figure(
            drop_s=drop_s, p99_ratio=after["p99_ms"] / before["p99_ms"], p99_ms=after["p99_ms"],
            baseline_p99_ms=before["p99_ms"], rss_grown_mb=grown / 1e6, lost=seen["lost"], told_3008=codes[3008],
            reset=codes[1006],
        )  # fmt: skip
        assert (await closed(one))["3008"] == SLOW
        assert set(codes) <= {3008, 1006}
        assert (seen["received"], seen["lost"], seen["closed"]) == (traffic.sent, 0, 0)
        assert grown < SLOW * (OUTBOX_BYTES + UNREAD_BYTES) + NOISE_BYTES
        assert (await one.call("LEDGER.whoami"))["data"] == "r1"


@pytest.mark.fault(row=23, control=True)
async def test_without_a_limit_of_the_outbox_memory_grows(own_valkey: ValkeyServer, fault: Fault) -> None:
    unlimited = {"LISTENERS_OUTBOX_BYTES": "1000000000", "LISTENERS_OUTBOX_AGE_S": "3600"}
    async with (
        Fleet(own_valkey, count=1, environ=unlimited) as fleet,
        Redis(host=own_valkey.host, port=own_valkey.port) as redis,
    ):
        (one,) = fleet.replicas
        async with slow_clients(one) as clients:
            flood = Flood(redis, one)
            await flood.run([client.uid for client in clients])
            grown = flood.rss_max - flood.rss_before
            fault.figure(rss_grown_mb=grown / 1e6, closed=(await closed(one)).total())
            assert await closed(one) == Counter()
            assert grown > SLOW * (OUTBOX_BYTES + UNREAD_BYTES) + NOISE_BYTES
