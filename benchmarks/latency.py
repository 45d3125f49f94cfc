"""From a write at the source to the event on Redis, with 1, 1,000 and 10,000 listeners in one service.

The service, the source's server, Valkey, the subscriber and the writer are a process each; the writes go to users
drawn at random, evenly over time. A user is one listener.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

from benchmarks.processes import Cost, Peer, peer, percentile
from benchmarks.service import serving
from benchmarks.sources import SOURCES, Source, source
from callboard_local import ValkeyServer

COUNTS = (1, 1_000, 10_000)
_SETTLE_S = 6.0
"""After the last listener came: presence is mirrored, leases are renewed for the first time."""


async def measure(name: str, users: int, *, writes: int = 1_200, rate: float = 40) -> dict[str, Any]:
    with ValkeyServer() as valkey:
        async with source(name) as written:
            environ = {
                **written.environ,
                "LISTENERS_REDIS_HOST": valkey.host,
                "LISTENERS_REDIS_PORT": str(valkey.port),
                "LISTENERS_TTL_SECONDS": "3600",
            }
            async with serving(environ) as service, peer("benchmarks.subscriber", str(valkey.port), name) as heard:
                began = time.monotonic()
                await service.enter(f"u{number}" for number in range(users))
                await service.listening(users * written.listeners)
                attached_s = time.monotonic() - began
                await asyncio.sleep(_SETTLE_S)
                await _write(
                    written, heard, users, max(rate, 1), 20, first=-20
                )  # connections are dialled, code is warm
                await heard.ask("report")
                pids = {"service": service.pid, "source": written.server.pid, "Valkey": valkey.pid}
                before = {process: Cost.of(pid) for process, pid in pids.items()}
                began = time.monotonic()
                await _write(written, heard, users, rate, writes)
                took_s = time.monotonic() - began
                cpu = {p: (Cost.of(pid).cpu_s - before[p].cpu_s) / took_s * 100 for p, pid in pids.items()}
                report = await heard.ask("report")
                rss = service.cost.rss
    counts = dict(report["heard"])
    return {
        "source": written.name,
        "listeners": users * written.listeners,
        "writes/s": rate,
        "p50 ms": percentile(report["ms"], 0.5),
        "p99 ms": percentile(report["ms"], 0.99),
        "max ms": max(report["ms"]),
        "lost": writes - len(counts),
        "doubled": sum(counts.values()) - len(counts),
        "CPU % service / source / Valkey": " / ".join(f"{percent:.0f}" for percent in cpu.values()),
        "attached in s": attached_s,
        "service MiB": rss / 2**20,
    }


async def _write(written: Source, heard: Peer, users: int, rate: float, writes: int, first: int = 0) -> None:
    """`writes` writes, each to an entry of its own; returns when all were heard, or have not been for 10 s."""
    began = time.monotonic()
    async with asyncio.TaskGroup() as tasks:
        for number in range(writes):
            await asyncio.sleep(began + number / rate - time.monotonic())
            n = first + number
            tasks.create_task(written.write(f"u{random.randrange(users)}", f"k{n}", n))
    until = time.monotonic() + 10
    while await heard.ask("heard") < writes and time.monotonic() < until:
        await asyncio.sleep(0.1)


async def compare() -> list[dict[str, Any]]:
    """Every source, with every number of listeners; and the most of them at five times the rate."""
    rows = []
    for name in SOURCES:
        rows += [await measure(name, users) for users in COUNTS]
        rows.append(await measure(name, COUNTS[-1], writes=6_000, rate=200))
    return rows
