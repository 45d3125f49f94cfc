"""A thousand Realtime Database streams in one process, and Google's `db.listen()`: cost, delivery, outages survived.

The server is the embedded one, in a process of its own, and keeps its data in a file; the followers are in another
process; the writes come from this one, spread over the followers at random and evenly over time.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.processes import Cost, Peer, peer, percentile
from benchmarks.sources import Realtime

DOWN_S = (1.0, 8.0)
_IDLE_S = 35.0
"""A keep-alive comes every 30 s: each stream has one meanwhile."""
_RECOVERY_S = 30.0
_WARM = -1
"""The follower that is there before the count begins, so that nothing is imported, or grown, for the first one."""

Row = dict[str, Any]
"""A contender's figures by name."""


async def measure(contender: str, count: int, *, writes: int = 4_000, rate: float = 200) -> Row:
    """`contender`: `stream` or `listen`."""
    with tempfile.TemporaryDirectory() as directory:
        async with (
            Realtime(Path(directory) / "data.sqlite") as database,
            peer("benchmarks.followers", contender, database.url) as followers,
        ):
            row: Row = {"contender": {"stream": "streams", "listen": "db.listen()"}[contender]}
            row |= await _opened(database, followers, count)
            row |= await _written(database, followers, count, writes, rate)
            for down_s in DOWN_S:
                row |= await _survived(database, followers, count, down_s)
            return row


async def _opened(database: Realtime, followers: Peer, count: int) -> Row:
    server = database.server.pid
    await followers.ask("listen", first=_WARM, count=1, within_s=20)
    rss, threads = await followers.ask("cost")
    began, ours, theirs = time.monotonic(), followers.cost, Cost.of(server)
    settled = await followers.ask("listen", first=0, count=count, within_s=120)
    row: Row = {"followers": settled - 1, "opened in, s": time.monotonic() - began}
    row["opening: CPU s, followers / server"] = _spent(followers, server, ours, theirs)
    rss_then, threads_then = await followers.ask("cost")
    row["KiB a follower"] = (rss_then - rss) / count / 1024
    row["threads added"] = int(threads_then - threads)
    row["idle: CPU %, followers / server"] = await _share(followers, server, _IDLE_S)
    return row


async def _share(followers: Peer, server: int, seconds: float) -> list[float]:
    ours, theirs = followers.cost, Cost.of(server)
    await asyncio.sleep(seconds)
    return [s / seconds * 100 for s in _spent(followers, server, ours, theirs)]


async def _written(database: Realtime, followers: Peer, count: int, writes: int, rate: float) -> Row:
    """Spread writes over the followers, each as often as any other."""
    order = [number for _ in range(-(-writes // count)) for number in random.sample(range(count), count)][:writes]
    server = database.server.pid
    ours, theirs, began = followers.cost, Cost.of(server), time.monotonic()
    async with asyncio.TaskGroup() as tasks:
        for n, number in enumerate(order):
            await asyncio.sleep(began + n / rate - time.monotonic())
            tasks.create_task(database.write(f"u{number}", f"k{n // count:06}", n))
    took = time.monotonic() - began
    heard = await _heard(followers, set(range(writes)))
    spent = _spent(followers, server, ours, theirs)
    times = (await followers.ask("report"))["ms"]
    return {
        "writes": writes,
        "rate, 1/s": writes / took,
        "writing: CPU %, followers / server": [s / took * 100 for s in spent],
        "lost": writes - len(heard),
        "doubled": _repeated(heard),
        "write to follower, ms": [percentile(times, 0.5), percentile(times, 0.99)],
    }


async def _survived(database: Realtime, followers: Peer, count: int, down_s: float) -> Row:
    """Kill the server, start it again, write once to each: who hears of it within half a minute, and when all had."""
    first = 1_000_000 * round(down_s)
    before = _repeated(await _heard(followers, set()))
    await database.server.kill()
    await asyncio.sleep(down_s)
    await database.server.restart()
    back_at = time.monotonic()
    async with asyncio.TaskGroup() as tasks:
        for number in range(count):
            tasks.create_task(database.write(f"u{number}", "survived", first + number))
            await asyncio.sleep(0.005)
    heard = await _heard(followers, set(range(first, first + count)), _RECOVERY_S)
    there = [n for n in heard if first <= n < first + count]
    return {
        f"{down_s:.0f} s outage: survived": f"{len(there)} of {count}",
        f"{down_s:.0f} s outage: all back after, s": time.monotonic() - back_at if len(there) == count else "never",
        f"{down_s:.0f} s outage: heard again": _repeated(heard) - before,
    }


async def _heard(followers: Peer, sent: set[int], within_s: float = 20) -> Counter[int]:
    """What has arrived so far, how often, once all that was sent did or the time is over."""
    until = time.monotonic() + within_s
    while True:
        heard = Counter(dict((await followers.ask("report"))["deliveries"]))
        if sent <= heard.keys() or time.monotonic() > until:
            return heard
        await asyncio.sleep(0.1)


def _repeated(heard: Counter[int]) -> int:
    return sum(heard.values()) - len(heard)


def _spent(followers: Peer, server: int, ours: Cost, theirs: Cost) -> list[float]:
    return [followers.cost.cpu_s - ours.cpu_s, Cost.of(server).cpu_s - theirs.cpu_s]


async def compare() -> list[Row]:
    """A thousand streams, two hundred beside `db.listen()`'s, and it with fewer."""
    streams = [await measure("stream", count) for count in (1_000, 200)]
    return streams + [await measure("listen", count) for count in (1, 50, 200)]
