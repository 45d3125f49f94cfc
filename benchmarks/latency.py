"""From a write at the source to the event on Redis, with 1, 1,000 and 10,000 listeners in one service.

The service, the source's server, Valkey, the subscriber and the writer are a process each; the writes go to users
drawn at random, evenly over time. A user is one listener. The service is `callboard serve` with all that it does
besides (presence, leases, sockets), or the parts alone that an event goes through.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.processes import Cost, Peer, peer, percentile
from benchmarks.service import serving
from benchmarks.sources import SOURCES, Source, source
from callboard_local import ValkeyServer

COUNTS = (1, 1_000, 10_000)
_ALONE = {"writes": 400, "rate": 10}
"""For one user: what comes faster than 20 a second to one user is gathered, and waits for that."""
_SETTLE_S = 6.0
"""After the last listener came: presence is mirrored, leases are renewed for the first time."""


async def measure(
    name: str, users: int, *, whole: bool = True, writes: int = 1_200, rate: float = 40
) -> dict[str, Any]:
    """`whole`: the service; else its parts."""
    with ValkeyServer() as valkey:
        async with source(name) as written:
            environ = {
                **written.environ,
                "LISTENERS_REDIS_HOST": valkey.host,
                "LISTENERS_REDIS_PORT": str(valkey.port),
                "LISTENERS_TTL_SECONDS": "3600",
            }
            began = time.monotonic()
            listening = _service(environ, users, written.listeners) if whole else _parts(environ, name, users)
            async with listening as pid, peer("benchmarks.subscriber", str(valkey.port), name) as heard:
                attached_s = time.monotonic() - began
                await asyncio.sleep(_SETTLE_S)
                # Connections are dialled and code is warm before it counts.
                await _write(written, heard, users, rate, 20, first=-20)
                await heard.ask("report")
                pids = {"listening": pid, "source": written.server.pid, "Valkey": valkey.pid}
                before = {process: Cost.of(pid) for process, pid in pids.items()}
                began = time.monotonic()
                await _write(written, heard, users, rate, writes)
                took_s = time.monotonic() - began
                cpu = [(Cost.of(pid).cpu_s - before[process].cpu_s) / took_s * 100 for process, pid in pids.items()]
                report = await heard.ask("report")
                rss = Cost.of(pid).rss
    counts = dict(report["heard"])
    return {
        "source": written.name,
        "in": "the service" if whole else "its parts",
        "listeners": users * written.listeners,
        "writes/s": rate,
        "p50 ms": percentile(report["ms"], 0.5),
        "p99 ms": percentile(report["ms"], 0.99),
        "max ms": max(report["ms"]),
        "lost": writes - len(counts),
        "doubled": sum(counts.values()) - len(counts),
        "CPU %: listening / source / Valkey": cpu,
        "attached in s": attached_s,
        "MiB": rss / 2**20,
    }


@asynccontextmanager
async def _service(environ: Mapping[str, str], users: int, listeners: int) -> AsyncIterator[int]:
    """`callboard serve` with so many users online and listened to: its process id."""
    async with serving(environ) as service:
        await service.enter(f"u{number}" for number in range(users))
        await service.listening(users * listeners)
        yield service.pid


@asynccontextmanager
async def _parts(environ: Mapping[str, str], name: str, users: int) -> AsyncIterator[int]:
    async with peer("benchmarks.assembly", name, environ=environ) as assembly:
        await assembly.ask("enter", count=users)
        yield assembly.pid
        await assembly.ask("listening")  # else it ended in between


async def _write(written: Source, heard: Peer, users: int, rate: float, writes: int, first: int = 0) -> None:
    """`writes` writes, each to an entry of its own; returns when all were heard, or have not been for 10 s."""
    began = time.monotonic()
    async with asyncio.TaskGroup() as tasks:
        for number in range(writes):
            await asyncio.sleep(began + number / rate - time.monotonic())
            n = first + number
            tasks.create_task(written.write(f"u{random.randrange(users)}", f"k{n:06}", n))
    until = time.monotonic() + 10
    while await heard.ask("heard") < writes and time.monotonic() < until:
        await asyncio.sleep(0.1)


def _load(users: int) -> dict[str, Any]:
    return _ALONE if users == 1 else {}


async def compare() -> list[dict[str, Any]]:
    """Every source, with every number of listeners; and the most of them at five times the rate."""
    rows = []
    for name in SOURCES:
        rows += [await _try(name, users, whole=False, **_load(users)) for users in COUNTS]
        rows.append(await _try(name, COUNTS[-1], whole=False, writes=6_000, rate=200))
        rows += [await _try(name, users, whole=True, **_load(users)) for users in COUNTS]
    return rows


async def _try(name: str, users: int, *, whole: bool, **load: Any) -> dict[str, Any]:
    """A row; of a machine that is too busy for so many, one that says so."""
    try:
        return await measure(name, users, whole=whole, **load)
    except (RuntimeError, FileNotFoundError) as error:  # a process that ended has no figures, nor a place in /proc
        return {"source": name, "in": "the service" if whole else "its parts", "listeners": users, "": str(error)}
