"""What the replicas' processes cost, every few seconds."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Sequence
from pathlib import Path

import httpx
from faults.fleet import Fleet, Replica
from faults.soak.history import History, Sample

from callboard_local import FaultProxy

_EVERY_S = 5.0
_NOBODY_S = "0"


async def sample(fleet: Fleet, proxies: Sequence[FaultProxy], history: History) -> None:
    """For ever. `proxies` stand between a replica and Redis, one for each."""
    while True:
        for replica, proxy in zip(fleet.replicas, proxies, strict=True):
            await _sample_one(replica, proxy, history)
        await asyncio.sleep(_EVERY_S)


async def _sample_one(replica: Replica, proxy: FaultProxy, history: History) -> None:
    """Nothing is said of one that does not answer: it is stopped, or not up yet."""
    if not replica.alive:
        return
    with contextlib.suppress(OSError, httpx.TransportError):  # it may be ended meanwhile
        pid, cost = replica.pid, replica.cost
        metrics = (await replica.client.get("/metrics", timeout=1)).text
        redis = connections_to(proxy.port)
        history.add(
            Sample(
                t=history.now(), replica=replica.name, pid=pid,
                rss=cost.rss, threads=cost.threads, fds=cost.fds - redis, redis=redis,
                tasks=_sum(metrics, "callboard_tasks"), sockets=_sum(metrics, "callboard_ws_connections"),
                listeners=_sum(metrics, "callboard_listeners_active"),
            )
        )  # fmt: skip


def _sum(metrics: str, name: str) -> int:
    return int(sum(map(float, re.findall(rf"^{name}(?:{{.*}})? (\S+)$", metrics, re.MULTILINE))))


def connections_to(port: int) -> int:
    """How many sockets that processes of this machine hold are connected to that port, half-closed ones included."""
    rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    # Without an inode: closed by its process, and kept by the kernel until the other side has heard of it.
    return sum(row[2].endswith(f":{port:04X}") and row[9] != _NOBODY_S for row in rows)
