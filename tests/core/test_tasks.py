from __future__ import annotations

import asyncio
import contextlib

import pytest

from callboard.fleet.tasks import heed_cancellation

pytestmark = pytest.mark.anyio


async def swallowing(turns: list[int], *, heeding: bool) -> None:
    """A loop that awaits something which keeps its cancellation to itself, as wait_for of Python 3.11 may."""
    for turn in range(3):
        turns.append(turn)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3_600 if turn == 0 else 0)
        if heeding:
            heed_cancellation()


@pytest.mark.parametrize(("heeding", "expected"), [(True, [0]), (False, [0, 1, 2])])  # False: the negative control
async def test_a_cancellation_that_was_swallowed_still_ends_the_task(heeding: bool, expected: list[int]) -> None:
    turns: list[int] = []
    task = asyncio.create_task(swallowing(turns, heeding=heeding))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert turns == expected
    assert task.cancelled() is heeding


async def test_a_task_that_nobody_cancelled_goes_on() -> None:
    heed_cancellation()
