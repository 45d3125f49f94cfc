"""Bursts: what passes, and what is gathered."""

from __future__ import annotations

import asyncio

import pytest

from callboard_firebase import Pace

from .conftest import Listening, take

pytestmark = pytest.mark.anyio


class Clock:
    """A time that passes only where somebody waits, and how often somebody did."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waits: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pace(clock: Clock) -> Pace:
    return Pace(burst=10, gather_s=0.5, clock=clock, sleep=clock.sleep)


async def test_changes_below_the_burst_never_wait(pace: Pace, clock: Clock) -> None:
    for _ in range(100):
        for _ in range(9):
            await pace.told(1)
        clock.now += 1
    assert clock.waits == []


async def test_what_comes_faster_is_gathered(pace: Pace, clock: Clock) -> None:
    for _ in range(10):
        await pace.told(1)
    assert clock.waits == []
    for _ in range(20):
        await pace.told(100)
    assert clock.waits == [0.5] * 20


@pytest.mark.parametrize("changes", [11, 1_000_000])
async def test_a_burst_that_is_over_is_forgotten(pace: Pace, clock: Clock, changes: int) -> None:
    await pace.told(changes)
    clock.now += 2
    await pace.told(10)
    assert len(clock.waits) == 1


@pytest.mark.parametrize("paced", [True, False], ids=["paced", "control"])
async def test_a_paced_reader_finds_a_burst_gathered(firestore: Listening, paced: bool) -> None:
    """The control reads every batch as it comes, and gets one for each of the writes."""
    notes = firestore.client.collection("notes")
    pace = Pace(burst=10, gather_s=0.5)
    async with firestore.engine.watch(notes) as batches:
        await take(batches)
        sizes: list[int] = []

        async def read() -> None:
            while sum(sizes) < 100:
                batch = await take(batches)
                sizes.append(len(batch.changes))
                if paced:
                    await pace.told(len(batch.changes))

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(read())
            for number in range(100):
                await notes.document(str(number)).set({})
        assert len(sizes) == 100 or paced
        assert len(sizes) < 50 or not paced
