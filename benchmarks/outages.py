"""A server is killed (SIGKILL) under load and comes back on its port: how long until events flow, and what is missing.

Ten users have a WebSocket each and write 50 times a second to 20 entries of theirs; the writes go on while the server
is away, whether they are taken or not. In the end each consumer's state is compared with the source, which keeps its
data in a file. Valkey comes back empty.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from benchmarks.consumers import Consumer, watching
from benchmarks.service import serving
from benchmarks.sources import SOURCES, Source, source
from callboard_local import ValkeyServer
from callboard_local.server import ServerProcess

DOWN_S = (1.0, 10.0, 60.0)
_USERS = [f"u{number}" for number in range(10)]
_KEYS = [f"k{number}" for number in range(20)]
_RATE = 50
_LOAD_S = 5.0
"""Load before the kill, and after the last consumer has heard something again."""
_RECOVERY_S = 120.0
"""Longer than this is not recovered."""


class Writer:
    """Writes at a steady rate, come what may."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._next = 0
        self.taken = self.refused = 0

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as tasks:
            steady = tasks.create_task(self._steadily(tasks))
            yield
            steady.cancel()

    async def _steadily(self, tasks: asyncio.TaskGroup) -> None:
        began = time.monotonic()
        while True:
            await asyncio.sleep(began + self._next / _RATE - time.monotonic())
            self._next += 1
            tasks.create_task(self._write(self._next))

    async def _write(self, n: int) -> None:
        try:
            await self._source.write(random.choice(_USERS), random.choice(_KEYS), n)
        except Exception:  # noqa: BLE001 - whatever kept it from being taken, it is counted
            self.refused += 1
        else:
            self.taken += 1


async def measure(name: str, victim: str, down_s: float) -> dict[str, Any]:
    """`victim`: `source` or `Valkey`."""
    with ValkeyServer() as valkey, tempfile.TemporaryDirectory() as directory:
        async with source(name, Path(directory) / "data.sqlite") as written:
            environ = {
                **written.environ,
                "LISTENERS_REDIS_HOST": valkey.host,
                "LISTENERS_REDIS_PORT": str(valkey.port),
            }
            server: ServerProcess = written.server if victim == "source" else valkey
            async with serving(environ) as service, watching(service.port, written, _USERS) as consumers:
                await service.listening(len(_USERS) * written.listeners)
                writer = Writer(written)
                async with writer.writing():
                    await asyncio.sleep(_LOAD_S)
                    killed_at = time.monotonic()
                    await server.kill()
                    await asyncio.sleep(down_s - (time.monotonic() - killed_at))
                    await server.restart()
                    back_at = time.monotonic()
                    until = back_at + _RECOVERY_S
                    while not all(one.first_after(back_at) for one in consumers) and time.monotonic() < until:
                        await asyncio.sleep(0.01)
                    await asyncio.sleep(_LOAD_S)
                wrong = await _wrong(written, consumers)
    return _row(written.name if victim == "source" else victim, down_s, back_at, consumers, writer, wrong)


def _row(
    name: str, down_s: float, back_at: float, consumers: list[Consumer], writer: Writer, wrong: int
) -> dict[str, Any]:
    first = [found for one in consumers if (found := one.first_after(back_at)) is not None]
    delays = sorted(delay for delay, _ in first)
    return {
        "killed": name,
        "for s": down_s,
        "first event after s": delays[0] if delays else "never",
        "last consumer's after s": delays[-1] if len(delays) == len(consumers) else "never",
        "which was a sync": f"{sum(sync for _, sync in first)} of {len(consumers)}",
        "writes taken / refused": f"{writer.taken} / {writer.refused}",
        "lost in the end state": wrong,
        "doubled": sum(one.doubled for one in consumers),
        "sockets reconnected": sum(one.connects - 1 for one in consumers),
    }


async def _wrong(source: Source, consumers: list[Consumer], within_s: float = 30) -> int:
    """Entries that a consumer has wrong, once all are right or the time is over."""
    until = time.monotonic() + within_s
    while True:
        stored = {one.uid: await source.read(one.uid) for one in consumers}
        wrong = sum(one.state.get(key) != stored[one.uid].get(key) for one in consumers for key in _KEYS)
        if not wrong or time.monotonic() > until:
            return wrong
        await asyncio.sleep(0.2)


async def compare() -> list[dict[str, Any]]:
    """Each source's server, and Valkey, for 1, 10 and 60 s."""
    victims = [*((name, "source") for name in SOURCES), (next(iter(SOURCES)), "Valkey")]
    return [await measure(name, victim, down_s) for name, victim in victims for down_s in DOWN_S]
