"""What the replicas' processes cost, every few seconds."""

from __future__ import annotations

import asyncio
import contextlib
import re

import httpx
from faults.fleet import Fleet, Replica
from faults.soak.history import History, Sample

_EVERY_S = 5.0


async def sample(fleet: Fleet, history: History) -> None:
    """For ever."""
    while True:
        for replica in fleet.replicas:
            await _sample_one(replica, history)
        await asyncio.sleep(_EVERY_S)


async def _sample_one(replica: Replica, history: History) -> None:
    """Nothing is said of one that does not answer: it is stopped, or not up yet."""
    if not replica.alive:
        return
    with contextlib.suppress(OSError, httpx.TransportError):  # it may be ended meanwhile
        pid, cost = replica.pid, replica.cost
        text = (await replica.client.get("/metrics", timeout=1)).text
        if found := re.search(r"^callboard_tasks (\S+)$", text, re.MULTILINE):
            history.add(
                Sample(
                    t=history.now(), replica=replica.name, pid=pid, tasks=int(float(found[1])),
                    rss=cost.rss, threads=cost.threads, fds=cost.fds,
                )
            )  # fmt: skip
