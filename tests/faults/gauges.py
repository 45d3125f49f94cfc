"""What a replica says of itself, and a page of what it was told."""

from __future__ import annotations

import asyncio
import time

from faults.fleet import Replica
from faults.page import Page


def syncs(page: Page) -> int:
    return sum(event["type"] == "count.sync" for event in page.events)


async def metric(replica: Replica, name: str) -> float:
    """A sample without labels."""
    text = (await replica.client.get("/metrics")).text
    return float(next(line.split()[1] for line in text.splitlines() if line.startswith(f"{name} ")))


async def bus_state(replica: Replica) -> str:
    return str((await replica.client.get("/readyz")).json()["bus"])


async def until_bus(replica: Replica, state: str, within_s: float = 30) -> float:
    """Wait until the replica says that its bus is so; how many seconds that took."""
    began = time.monotonic()
    async with asyncio.timeout(within_s):
        while await bus_state(replica) != state:
            await asyncio.sleep(0.02)
    return time.monotonic() - began
