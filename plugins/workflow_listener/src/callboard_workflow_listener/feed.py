"""Several streams read as one, with streams joining and leaving while it is read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Hashable
from contextlib import aclosing
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Failure:
    error: Exception


class Feed(Generic[K, T]):
    """`async with Feed() as feed: feed.add("a", stream); async for key, item in feed: …`

    Each stream is read by a task of the feed's own, one item ahead at most, so a slow reader slows the streams. The
    error of a stream is raised where the feed is read.
    """

    def __init__(self) -> None:
        self._queue: asyncio.Queue[tuple[asyncio.Task[None], K, Any]] = asyncio.Queue(1)
        self._tasks: dict[K, asyncio.Task[None]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop(self.keys())

    def keys(self) -> set[K]:
        return set(self._tasks)

    def add(self, key: K, stream: AsyncGenerator[T, None]) -> None:
        self._tasks[key] = asyncio.create_task(self._read(key, stream), name="feed")

    async def remove(self, key: K) -> None:
        """The stream is closed, and nothing it sent is yielded any more."""
        await self._stop({key})

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[K, T]:
        while True:
            task, key, item = await self._queue.get()
            if self._tasks.get(key) is not task:
                continue
            if isinstance(item, _Failure):
                raise item.error
            return key, item

    async def _read(self, key: K, stream: AsyncGenerator[T, None]) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101
        try:
            async with aclosing(stream):
                async for item in stream:
                    await self._queue.put((task, key, item))
        except Exception as error:  # noqa: BLE001 - raised again in __anext__
            if self._tasks.get(key) is task:
                await self._queue.put((task, key, _Failure(error)))

    async def _stop(self, keys: set[K]) -> None:
        tasks = [self._tasks.pop(key) for key in keys]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
