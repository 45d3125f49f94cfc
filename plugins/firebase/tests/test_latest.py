"""What both watches have in common: one reader, who is woken, and told of the end."""

from __future__ import annotations

import asyncio

import pytest

from callboard.errors import Unavailable
from callboard_firebase.latest import Latest

pytestmark = pytest.mark.anyio


class Number(Latest[int]):
    """The last number it was given."""

    def __init__(self) -> None:
        super().__init__()
        self._number: int | None = None

    def update(self, number: int) -> None:
        self._number = number
        self._wake()

    def _take(self) -> int | None:
        number, self._number = self._number, None
        return number


async def take(watch: Number) -> int:
    async with asyncio.timeout(20):
        return await anext(watch)


async def test_a_slow_reader_finds_the_latest() -> None:
    watch = Number()
    watch.update(1)
    watch.update(2)
    assert await take(watch) == 2


async def test_a_waiting_reader_is_woken() -> None:
    watch = Number()
    async with asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(take(watch))
        await asyncio.sleep(0)
        watch.update(1)
    assert reading.result() == 1


async def test_an_error_follows_the_batches_before_it_and_stays() -> None:
    watch = Number()
    watch.update(1)
    watch.fail(Unavailable("first"))
    watch.fail(Unavailable("second"))
    assert await take(watch) == 1
    for _ in range(2):
        with pytest.raises(Unavailable, match="first"):
            await take(watch)


async def test_a_cancelled_reader_loses_nothing() -> None:
    watch = Number()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await anext(watch)
    watch.update(1)
    assert await take(watch) == 1


async def test_a_second_reader_is_refused() -> None:
    watch = Number()
    reading = asyncio.create_task(take(watch))
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError):
        await anext(watch)
    watch.update(1)
    assert await reading == 1
