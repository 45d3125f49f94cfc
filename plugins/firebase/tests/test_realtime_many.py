"""A thousand streams in one process."""

from __future__ import annotations

import asyncio
import resource
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import pytest

from callboard_firebase import NodeWatch
from callboard_firebase.realtime.tree import put

from .realtime_server import QUICK, Exchange, served

pytestmark = pytest.mark.anyio

STREAMS = 1_000
THREADS = 10


@pytest.fixture
def many_files() -> Iterator[None]:
    """Both ends of every connection are in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4 * STREAMS)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Nodes:
    """As much of a database as this needs: flat nodes, each told to its streams."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.streams: dict[str, Exchange] = {}

    async def __call__(self, exchange: Exchange) -> None:
        name, _, child = exchange.path.removeprefix("/").removesuffix(".json").partition("/")
        if exchange.method == "PUT":
            self.values[name] = put(self.values.get(name), [child], exchange.json())
            if (stream := self.streams.get(name)) is not None:
                await stream.put(f"/{child}", exchange.json())
            await exchange.answer(200, None)
            return
        await exchange.stream()
        await exchange.put("/", self.values.get(name))
        self.streams[name] = exchange
        await exchange.silence()


async def follow(watch: NodeWatch, last: int) -> list[tuple[str, str, Any]]:
    """Every change up to the child `last`."""
    seen: list[tuple[str, str, Any]] = []
    async for batch in watch:
        seen += [(change.kind, change.key, change.value) for change in batch.changes]
        if f"w{last}" in batch.children:
            break
    return seen


async def test_a_thousand_streams_take_no_threads_and_lose_nothing(many_files: None) -> None:
    nodes = Nodes()
    names = [f"n{number}" for number in range(STREAMS)]
    before = threading.active_count()
    async with served(nodes, replace(QUICK, reopens=5)) as (server, database), AsyncExitStack() as stack:
        watches = [await stack.enter_async_context(database.watch(name)) for name in names]
        async with asyncio.timeout(50):
            assert all([(await anext(watch)).initial for watch in watches])
            assert (database.stats().streams, database.stats().connected) == (STREAMS, STREAMS)
            assert threading.active_count() - before <= THREADS

            async with asyncio.TaskGroup() as tasks:
                following = [tasks.create_task(follow(watch, 1)) for watch in watches]
                for name in names:
                    await database.set(f"{name}/w1", name)
            assert [task.result() for task in following] == [[("added", "w1", name)] for name in names]

            # All are cut off at once, and miss a write each.
            lost, nodes.streams = nodes.streams, {}
            for stream in lost.values():
                stream.reset()
            async with asyncio.TaskGroup() as tasks:
                following = [tasks.create_task(follow(watch, 2)) for watch in watches]
                for name in names:
                    await database.set(f"{name}/w2", name)
            assert [task.result() for task in following] == [[("added", "w2", name)] for name in names]
            assert database.stats().reconnects == STREAMS
            assert threading.active_count() - before <= THREADS
    assert (database.stats().streams, database.stats().connected) == (0, 0)
    assert len(server.exchanges) == 4 * STREAMS
