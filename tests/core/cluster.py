"""A cluster of two nodes, each with half of the slots."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from redis.asyncio import Redis

from callboard_local import ValkeyServer

CLUSTER = ["--cluster-enabled", "yes", "--cluster-require-full-coverage", "no", "--cluster-node-timeout", "500"]


@asynccontextmanager
async def administering(server: ValkeyServer) -> AsyncIterator[Any]:
    client = Redis(host=server.host, port=server.port)
    try:
        yield client
    finally:
        await client.aclose()


async def ready(client: Any) -> None:
    async with asyncio.timeout(10):
        while (await client.execute_command("CLUSTER INFO"))["cluster_state"] != "ok":
            await asyncio.sleep(0.01)


async def join(one: ValkeyServer, other: ValkeyServer) -> None:
    """Make them a cluster, unless they are; returns when both know it."""
    async with administering(one) as first, administering(other) as second:
        if (await first.execute_command("CLUSTER INFO"))["cluster_slots_assigned"] == "0":
            await first.execute_command("CLUSTER ADDSLOTSRANGE", 0, 8191)
            await second.execute_command("CLUSTER ADDSLOTSRANGE", 8192, 16383)
            await first.execute_command("CLUSTER MEET", other.host, other.port)
        await ready(first)
        await ready(second)
        async with asyncio.timeout(20):
            while len(await first.execute_command("CLUSTER SLOTS")) < 2:
                await asyncio.sleep(0.01)
            while len(await second.execute_command("CLUSTER SLOTS")) < 2:
                await asyncio.sleep(0.01)
