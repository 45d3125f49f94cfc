"""A thousand streams in one process."""

from __future__ import annotations

import asyncio
import resource
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from callboard_firebase import NodeWatch, RealtimeDatabase
from callboard_firebase.realtime import Address, EmulatorTokens
from callboard_local import RealtimeProcess

from .realtime_server import QUICK

pytestmark = pytest.mark.anyio

STREAMS = 1_000
THREADS = 10


@pytest.fixture
def many_files() -> Iterator[None]:
    """Enough for this process, and for the server, which inherits it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 2 * STREAMS)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
async def server(many_files: None) -> AsyncIterator[RealtimeProcess]:
    async with RealtimeProcess() as server:
        yield server


async def follow(watch: NodeWatch, last: str) -> list[tuple[str, str, Any]]:
    """Every change up to the child `last`."""
    seen: list[tuple[str, str, Any]] = []
    async for batch in watch:
        seen += [(change.kind, change.key, change.value) for change in batch.changes]
        if last in batch.children:
            break
    return seen


async def test_a_thousand_streams_take_no_threads_and_lose_nothing(server: RealtimeProcess) -> None:
    names = [f"n{number}" for number in range(STREAMS)]
    before = threading.active_count()
    address = Address.parse(server.url, emulator_host=server.address)
    async with (
        asyncio.timeout(50),
        RealtimeDatabase(address, EmulatorTokens(), QUICK) as database,
        AsyncExitStack() as stack,
    ):
        watches = [await stack.enter_async_context(database.watch(name)) for name in names]
        assert all([(await anext(watch)).initial for watch in watches])
        assert (database.stats().streams, database.stats().connected) == (STREAMS, STREAMS)
        assert (await server.control("streams", ns="demo"))["streams"] == STREAMS

        await database.update("", {f"{name}/w1": name for name in names})
        seen = await asyncio.gather(*(follow(watch, "w1") for watch in watches))
        assert seen == [[("added", "w1", name)] for name in names]

        # All are cut off at once, and find what was written meanwhile, and that alone.
        await server.control("drop", ns="demo")
        await database.update("", {f"{name}/w2": name for name in names})
        seen = await asyncio.gather(*(follow(watch, "w2") for watch in watches))
        assert seen == [[("added", "w2", name)] for name in names]
        while database.stats().connected < STREAMS:
            await asyncio.sleep(0.01)
        assert database.stats().reconnects == STREAMS
        assert threading.active_count() - before <= THREADS
    assert (database.stats().streams, database.stats().connected) == (0, 0)
