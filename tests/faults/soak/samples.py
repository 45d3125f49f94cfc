"""What the replicas' processes cost, every few seconds."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

import httpx
from faults.fleet import Fleet, Replica
from faults.soak.history import History, Sample

from callboard_local import FaultProxy

_EVERY_S = 5.0


async def sample(fleet: Fleet, proxies: Sequence[FaultProxy], history: History) -> None:
    """For ever. `proxies` stand between a replica and Redis, one for each."""
    truth = fleet.truth.connection_pool.connection_kwargs["port"]
    while True:
        for replica, proxy in zip(fleet.replicas, proxies, strict=True):
            await _sample_one(replica, proxy.port, truth, history)
        await asyncio.sleep(_EVERY_S)


async def _sample_one(replica: Replica, redis_port: int, truth_port: int, history: History) -> None:
    """Nothing is said of one that does not answer: it is stopped, or not up yet."""
    if not replica.alive:
        return
    with contextlib.suppress(OSError, httpx.TransportError):  # it may be ended meanwhile
        pid, cost = replica.pid, replica.cost
        metrics = (await replica.client.get("/metrics", timeout=1)).text
        redis, truth = (connections_to(port, pid) for port in (redis_port, truth_port))
        history.add(
            Sample(
                t=history.now(), replica=replica.name, pid=pid,
                rss=cost.rss, threads=cost.threads, fds=cost.fds - redis - truth, redis=redis,
                tasks=_sum(metrics, "callboard_tasks"), sockets=_sum(metrics, "callboard_ws_connections"),
                listeners=_sum(metrics, "callboard_listeners_active"),
            )
        )  # fmt: skip


def _sum(metrics: str, name: str) -> int:
    return int(sum(map(float, re.findall(rf"^{name}(?:{{.*}})? (\S+)$", metrics, re.MULTILINE))))


def connections_to(port: int, pid: int) -> int:
    """How many of a process's sockets are connected to that port, half-closed ones included."""
    links = [os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir() if fd.is_symlink()]
    inodes = {link.removeprefix("socket:[").rstrip("]") for link in links if link.startswith("socket:")}
    rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return sum(row[2].endswith(f":{port:04X}") and row[9] in inodes for row in rows)
