"""Ten thousand listeners in one process, and how far Google's `on_snapshot` gets: memory, threads, delivery, reads.

The Firestore is the embedded one, in a process of its own, with the limit of 100 streams on a connection that Google's
servers have. The listeners are in another process, the writes come from this one, spread at random over the listeners
and evenly over time.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from typing import Any

from google.auth.credentials import AnonymousCredentials
from google.cloud.firestore import AsyncClient

from benchmarks.processes import Cost, Peer, peer, percentile
from benchmarks.watchers import PROJECT, path
from callboard_firebase.channel import connect, disconnect
from callboard_local import FirestoreProcess

_IDLE_S = 5.0
_EVERY_NTH_UNSEEN = 20
_UNSEEN = 1_000_000_000
"""Writes with numbers from here on leave their query's filter: nobody may hear of them."""


Row = dict[str, Any]
"""A contender's figures by name."""


async def measure(count: int = 10_000, *, writes: int = 6_000, rate: float = 200, documents: bool = False) -> Row:
    """The engine: `count` listeners and `writes` writes at `rate` a second."""
    with FirestoreProcess(max_streams=100) as server:
        return await _measure("engine", server, count, writes=writes, rate=rate, documents=documents)


async def measure_on_snapshot(*, writes: int = 1_000, rate: float = 200) -> Row:
    """`on_snapshot` as far as it goes: 99 listeners, and the two that make it stop."""
    with FirestoreProcess(max_streams=100) as server:
        return await _measure("on_snapshot", server, 99, writes=writes, rate=rate, more=2)


async def _measure(
    contender: str,
    server: FirestoreProcess,
    count: int,
    *,
    writes: int,
    rate: float,
    documents: bool = False,
    more: int = 0,
) -> Row:
    client = AsyncClient(project=PROJECT, credentials=AnonymousCredentials())  # type: ignore[no-untyped-call]
    await connect(client, server.address)
    try:
        await client.document("settings_param/one").set({"value": 1})
        if documents:
            await _fill(client, count)
        async with peer("benchmarks.watchers", contender, server.address) as watchers:
            return await _phases(contender, client, watchers, server.pid, count, writes, rate, more)
    finally:
        await disconnect(client)


async def _phases(
    contender: str, client: AsyncClient, watchers: Peer, server: int, count: int, writes: int, rate: float, more: int
) -> Row:
    row: Row = {"contender": contender, "listeners": count}
    row["get before, ms"] = _two(await watchers.ask("get", times=300))
    rss, threads = await watchers.ask("cost")

    began, ours, theirs = time.monotonic(), watchers.cost, Cost.of(server)
    row["settled"] = await watchers.ask("listen", first=0, count=count, within_s=120)
    row["settled in, s"] = time.monotonic() - began
    row["settling: CPU s, listening / server"] = _spent(watchers, server, ours, theirs)
    row["streams"] = await watchers.ask("streams")
    rss_then, threads_then = await watchers.ask("cost")
    row["KiB a listener"] = (rss_then - rss) / count / 1024
    row["threads added"] = int(threads_then - threads)

    ours, theirs = watchers.cost, Cost.of(server)
    await asyncio.sleep(_IDLE_S)
    row["idle: CPU %, listening / server"] = [s / _IDLE_S * 100 for s in _spent(watchers, server, ours, theirs)]
    row["get idle, ms"] = _two(await watchers.ask("get", times=300))

    ours, theirs, began = watchers.cost, Cost.of(server), time.monotonic()
    async with asyncio.TaskGroup() as tasks:
        writing = tasks.create_task(_write(client, count, writes, rate))
        reads = await watchers.ask("get", times=int(writes / rate / 0.02))
    sent, unseen = writing.result()
    took = time.monotonic() - began
    delivered = await _delivered(watchers, sent)
    row["writes"], row["rate, 1/s"] = len(sent), (writes + len(unseen)) / took
    row["get during, ms"] = _two(reads)
    row["writing: CPU %, listening / server"] = [s / took * 100 for s in _spent(watchers, server, ours, theirs)]
    row["lost"] = len(sent - delivered.keys())
    row["doubled"] = sum(times - 1 for times in delivered.values())
    row["heard that should not be"] = len(delivered.keys() - sent)
    row["write to listener, ms"] = _two((await watchers.ask("report"))["ms"])
    if more:
        row["of so many more"] = more
        row["settled then"] = await watchers.ask("listen", first=count, count=more, within_s=10)
        row["get then, ms"] = _two(await watchers.ask("get", times=3))
    return row


async def _fill(client: AsyncClient, count: int) -> None:
    for start in range(0, count, 500):
        batch = client.batch()
        for number in range(start, min(start + 500, count)):
            fields = {"read": False, "status": "pending", "file_name": f"f{number}.pdf"}
            batch.set(client.document(path(number)), fields)
        await batch.commit()


async def _write(client: AsyncClient, count: int, writes: int, rate: float) -> tuple[set[int], set[int]]:
    """Write at a steady rate, each time to another listener, over and over when there are fewer listeners than writes.

    The numbers of the writes that somebody listens to, and of those that nobody may hear of.
    """
    order = [number for _ in range(-(-writes // count)) for number in random.sample(range(count), count)][:writes]
    sent: set[int] = set()
    unseen: set[int] = set()
    began = time.monotonic()
    async with asyncio.TaskGroup() as tasks:
        for n, number in enumerate(order):
            await asyncio.sleep(began + n / rate - time.monotonic())
            tasks.create_task(_set(client, number, n, read=False))
            sent.add(n)
            if n % _EVERY_NTH_UNSEEN == 0:
                tasks.create_task(_set(client, -(2 * n + 1), n + _UNSEEN, read=True))
                unseen.add(n + _UNSEEN)
    return sent, unseen


async def _set(client: AsyncClient, number: int, n: int, *, read: bool) -> None:
    # A write that nobody may hear of goes beside the listener's document, into the collection of its query.
    place = path(number) if number >= 0 else f"clients/u{-number % 1_000 | 1}/notifications/read{n}"
    await client.document(place).set({"read": read, "n": n, "sent_at": time.monotonic()})


async def _delivered(watchers: Peer, sent: set[int], within_s: float = 20) -> Counter[int]:
    """What arrived, once all did or the time is over; and half a second later, for what comes twice."""
    until = time.monotonic() + within_s
    while True:
        delivered = Counter(dict((await watchers.ask("report"))["deliveries"]))
        if sent <= delivered.keys() or time.monotonic() > until:
            await asyncio.sleep(0.5)
            return Counter(dict((await watchers.ask("report"))["deliveries"]))
        await asyncio.sleep(0.1)


def _spent(watchers: Peer, server: int, ours: Cost, theirs: Cost) -> list[float]:
    return [watchers.cost.cpu_s - ours.cpu_s, Cost.of(server).cpu_s - theirs.cpu_s]


def _two(times: list[float]) -> list[float] | None:
    """p50 and p99; None when there was no answer."""
    return [percentile(times, 0.5), percentile(times, 0.99)] if times else None


async def compare() -> list[Row]:
    """The engine without documents and with one each, then `on_snapshot`."""
    empty = await measure()
    full = await measure(documents=True)
    full["contender"] = "engine, a document each"
    return [empty, full, await measure_on_snapshot()]
