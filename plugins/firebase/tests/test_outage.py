"""An outage that several streams share: who asks, and when the others may."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from callboard_firebase.backoff import Backoff
from callboard_firebase.outage import Outage

pytestmark = pytest.mark.anyio

A: Any = "a"
B: Any = "b"
C: Any = "c"
"""Stand for streams: an outage knows them by identity alone."""


def make_outage() -> Outage:
    return Outage(Backoff(base_s=0.001, cap_s=0.001, per_window=1_000))


async def waiting(tasks: asyncio.TaskGroup, outage: Outage, *streams: Any) -> list[asyncio.Task[None]]:
    """One task per stream, in the queue in this order."""
    started = []
    for stream in streams:
        started.append(tasks.create_task(outage.wait(stream)))
        await asyncio.sleep(0)
    return started


async def test_one_asks_and_its_success_lets_the_others_go() -> None:
    outage = make_outage()
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        scout, *others = await waiting(tasks, outage, A, B, C)
        await scout
        outage.answered(B)  # not the scout: it says nothing of the server they wait for
        await asyncio.sleep(0)
        assert not any(other.done() for other in others)
        outage.answered(A)


async def test_after_a_success_nobody_waits_for_a_delay() -> None:
    outage = Outage(Backoff(base_s=0.001, cap_s=3_600, per_window=2, window_s=3_600))
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        scout, *_ = await waiting(tasks, outage, A, B, C)
        await scout
        outage.answered(A)
    async with asyncio.timeout(20):
        await outage.wait(B)  # and the ceiling counts from the success


async def test_a_scout_that_is_refused_goes_to_the_end_of_the_queue() -> None:
    outage = make_outage()
    order = []

    async def ask(stream: Any) -> None:
        for _ in range(3):
            await outage.wait(stream)
            order.append(stream)
        outage.resign(stream)

    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        for stream in (A, B, C):
            tasks.create_task(ask(stream))
    assert order == [A, B, C] * 3


@pytest.mark.parametrize("how", ["resigned", "cancelled"])
async def test_a_scout_that_gives_up_hands_over(how: str) -> None:
    outage = Outage(Backoff(base_s=3_600, cap_s=3_600, jitter=lambda: 1.0 if how == "cancelled" else 0.0))
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        scout, other = await waiting(tasks, outage, A, B)
        if how == "cancelled":
            outage._backoff = Backoff(base_s=0.001, cap_s=0.001)
            scout.cancel()
        else:
            await scout
            outage.resign(A)
        await other


async def test_a_waiter_that_is_cancelled_keeps_nobody_waiting() -> None:
    outage = make_outage()
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        scout, passing, last = await waiting(tasks, outage, A, B, C)
        await scout
        passing.cancel()
        outage.resign(A)
        await last
