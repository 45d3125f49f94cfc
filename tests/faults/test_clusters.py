"""A cluster that loses a master under load: subscriptions live again, keyed calls run once, screens get a sync."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Any

import pytest
from faults.fleet import Fleet
from faults.keyed_load import KeyedLoad, until_told
from faults.page import Page
from redis import exceptions as redis
from redis.asyncio import Redis, RedisCluster

from callboard_local import ValkeyCluster, ValkeyServer
from callboard_local.fault_figures import Fault
from callboard_local.server import in_thread

pytestmark = pytest.mark.anyio

NODE_TIMEOUT_S = 3.0


def subscribers(node: ValkeyServer) -> int:
    return node.ask("CLIENT", "LIST", "TYPE", "pubsub").count("id=")


async def master_with_a_subscriber(cluster: ValkeyCluster) -> ValkeyServer:
    """Drops the replicas' subscriptions, which then choose a node anew, until one has chosen a master."""
    async with asyncio.timeout(30):
        while True:
            for master in cluster.masters():
                if subscribers(master):
                    return master
            for node in cluster.nodes:
                node.ask("CLIENT", "KILL", "TYPE", "pubsub")
            while not any(map(subscribers, cluster.nodes)):
                await asyncio.sleep(0.05)


async def failed_over(cluster: ValkeyCluster, dead: ValkeyServer) -> None:
    async with asyncio.timeout(60):
        while len(now := await in_thread(cluster.masters)) < 3 or dead in now:
            await asyncio.sleep(0.1)


@pytest.mark.fault(row=7)
@pytest.mark.parametrize("how", ["killed", "hung"])
async def test_a_master_that_fails_under_load(fault: Fault, how: str) -> None:
    async with (
        ValkeyCluster(node_timeout_s=NODE_TIMEOUT_S) as cluster,
        Fleet(cluster, count=2) as fleet,
        Page("ann", lambda: fleet.replicas[0].ws_url) as one,
        Page("ann", lambda: fleet.replicas[1].ws_url) as two,
    ):
        pages = (one, two)
        for page in pages:
            await page.until(lambda page: page.number == 0)
        await fleet.grow("ann")
        for page in pages:
            await page.until(lambda page: page.number == 1)
        dead = await master_with_a_subscriber(cluster)
        for page in pages:
            await until_told(fleet, page, itertools.count(1_000_000))
        async with KeyedLoad(fleet) as load:
            await asyncio.sleep(0.5)  # some load before
            failed_at = time.monotonic()
            if how == "killed":
                await dead.kill()
            else:
                dead.pause()
            for _ in range(5):
                await fleet.grow("ann")
                await asyncio.sleep(0.2)
            numbers = itertools.count(1)
            for page in pages:
                await until_told(fleet, page, numbers)
            live_again_s = time.monotonic() - failed_at
            await failed_over(cluster, dead)
            failed_over_s = time.monotonic() - failed_at
            done = len(load.names)
            while len(load.names) < done + 50:  # every key is served again
                await asyncio.sleep(0.05)
        number = await fleet.grow("ann")
        for page in pages:
            await page.until(lambda page: page.number == number)
        executions = await load.executions()
        lost = sum(number not in page.told for page in pages for number in range(1, next(numbers)))
        fault.figure(
            how=how, live_again_s=round(live_again_s, 1), failed_over_s=round(failed_over_s, 1), calls=len(load.names),
            unknown=load.outcomes["ABORTED"], executed_twice=sum(n for times, n in executions.items() if times > 1),
            longest_call_s=round(load.longest_s, 1), lost=lost, breaches=len(one.breaches + two.breaches),
        )  # fmt: skip
        assert one.breaches == two.breaches == []
        assert live_again_s < 15 + 10, "with slack for a busy machine"
        assert set(load.outcomes) <= {"ok", "ABORTED"}
        assert set(executions) <= {0, 1}
        assert executions[0] <= load.outcomes["ABORTED"]


@pytest.mark.fault(row=7, control=True)
async def test_the_stock_clients_subscription_stays_with_the_dead_master(fault: Fault) -> None:
    async with ValkeyCluster(node_timeout_s=NODE_TIMEOUT_S) as cluster:
        dead = cluster.nodes[0]
        client = RedisCluster(host=cluster.nodes[1].host, port=cluster.nodes[1].port)
        await client.initialize()
        channel = next(name for name in map("user:{}".format, itertools.count()) if _node_of(client, name) == dead.port)
        pubsub: Any = client.pubsub()
        await pubsub.subscribe(channel)
        errors = received = 0
        reading = True

        async def read() -> None:
            nonlocal errors, received
            while reading:
                try:
                    message = await pubsub.get_message(timeout=0.2)
                    received += bool(message and message["type"] == "message")
                except (redis.RedisError, OSError):
                    errors += 1
                    await asyncio.sleep(0.1)

        task = asyncio.create_task(read())
        async with Redis(host=cluster.nodes[1].host, port=cluster.nodes[1].port) as publisher:
            async with asyncio.timeout(20):
                while not received:  # it works
                    await publisher.publish(channel, "before")
                    await asyncio.sleep(0.05)
            await dead.kill()
            await failed_over(cluster, dead)
            before, sent = received, 0
            until = time.monotonic() + 15
            while time.monotonic() < until:  # the time that the service has to be well again
                await publisher.publish(channel, "after")
                sent += 1
                await asyncio.sleep(0.1)
        reading = False
        await task
        fault.figure(received=received - before, of=sent, errors=errors)
        assert received == before
        await pubsub.aclose()
        await client.aclose()


def _node_of(client: Any, channel: str) -> int:
    return int(client.get_node_from_key(channel).port)
