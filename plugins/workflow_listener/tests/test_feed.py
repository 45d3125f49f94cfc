from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from callboard_workflow_listener.feed import Feed

pytestmark = pytest.mark.anyio


class Stream:
    """Yields what is put; knows whether it was closed."""

    def __init__(self) -> None:
        self.items: asyncio.Queue[str | Exception] = asyncio.Queue()
        self.closed = asyncio.Event()

    async def read(self) -> AsyncGenerator[str, None]:
        try:
            while True:
                item = await self.items.get()
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            self.closed.set()


async def test_streams_are_read_as_one() -> None:
    one, two = Stream(), Stream()
    async with Feed[str, str]() as feed:
        feed.add("one", one.read())
        feed.add("two", two.read())
        one.items.put_nowait("a")
        assert await anext(feed) == ("one", "a")
        two.items.put_nowait("b")
        assert await anext(feed) == ("two", "b")
        assert feed.keys() == {"one", "two"}


async def test_leaving_closes_every_stream() -> None:
    one, two = Stream(), Stream()
    async with Feed[str, str]() as feed:
        feed.add("one", one.read())
        feed.add("two", two.read())
        for stream in (one, two):
            stream.items.put_nowait("a")
            stream.items.put_nowait("b")
        await anext(feed)
    assert one.closed.is_set()
    assert two.closed.is_set()


async def test_a_removed_stream_is_closed_and_what_it_sent_is_not_yielded() -> None:
    one, two = Stream(), Stream()
    async with Feed[str, str]() as feed:
        feed.add("one", one.read())
        one.items.put_nowait("before")
        assert await anext(feed) == ("one", "before")
        one.items.put_nowait("too late")
        async with asyncio.timeout(10):
            while one.items.qsize():
                await asyncio.sleep(0)
        await feed.remove("one")
        assert one.closed.is_set()
        feed.add("one", two.read())
        two.items.put_nowait("after")
        assert await anext(feed) == ("one", "after")


async def test_the_error_of_a_stream_is_raised_where_the_feed_is_read() -> None:
    one = Stream()
    async with Feed[str, str]() as feed:
        feed.add("one", one.read())
        one.items.put_nowait(LookupError("broken"))
        with pytest.raises(LookupError, match="broken"):
            await anext(feed)


async def test_a_slow_reader_slows_the_streams() -> None:
    produced = 0

    async def count() -> AsyncGenerator[str, None]:
        nonlocal produced
        while True:
            produced += 1
            yield str(produced)

    async with Feed[str, str]() as feed:
        feed.add("one", count())
        for number in range(1, 100):
            assert await anext(feed) == ("one", str(number))
            assert produced <= number + 2
