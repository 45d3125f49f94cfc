from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import pytest

from callboard.errors import DeadlineExceeded, ResourceExhausted
from callboard.rpc.bulkhead import Bulkhead, EscapedFromMethod

pytestmark = pytest.mark.anyio


@pytest.fixture
def bulkhead() -> Iterator[Bulkhead]:
    made = Bulkhead("SAMPLE", concurrency=1, threads=1)
    yield made
    made.close()


def soon() -> float:
    return time.monotonic() + 5


async def run(bulkhead: Bulkhead, function: Any) -> Any:
    slot = await bulkhead.enter(on_thread=True, deadline=soon())
    try:
        return await bulkhead.run_on_thread(slot, function)
    finally:
        slot.leave()


async def test_a_slot_is_given_back_once(bulkhead: Bulkhead) -> None:
    slot = await bulkhead.enter(on_thread=False, deadline=soon())
    assert bulkhead.in_flight == 1
    slot.leave()
    slot.leave()
    assert bulkhead.in_flight == 0
    assert await bulkhead.enter(on_thread=False, deadline=soon())


async def test_one_may_wait_and_the_next_is_refused(bulkhead: Bulkhead) -> None:
    slot = await bulkhead.enter(on_thread=False, deadline=soon())
    waiting = asyncio.create_task(bulkhead.enter(on_thread=False, deadline=soon()))
    await asyncio.wait({waiting}, timeout=0.01)
    with pytest.raises(ResourceExhausted):
        await bulkhead.enter(on_thread=False, deadline=soon())
    slot.leave()
    assert await waiting


async def test_waiting_ends_at_the_deadline(bulkhead: Bulkhead) -> None:
    await bulkhead.enter(on_thread=False, deadline=soon())
    with pytest.raises(DeadlineExceeded):
        await bulkhead.enter(on_thread=False, deadline=time.monotonic() + 0.02)
    with pytest.raises(DeadlineExceeded):  # the failed wait left no trace
        await bulkhead.enter(on_thread=False, deadline=time.monotonic() + 0.02)


async def test_a_thread_keeps_its_slot_until_it_ends(bulkhead: Bulkhead) -> None:
    gate = threading.Event()
    caller = asyncio.create_task(run(bulkhead, lambda: gate.wait(10)))
    while not bulkhead.busy_threads:
        await asyncio.wait({caller}, timeout=0.01)
    caller.cancel()
    await asyncio.wait({caller})
    assert (bulkhead.busy_threads, bulkhead.in_flight) == (1, 1)
    gate.set()
    assert await run(bulkhead, lambda: "next") == "next"


async def test_context_variables_reach_the_thread(bulkhead: Bulkhead) -> None:
    variable: ContextVar[str] = ContextVar("variable")
    variable.set("mine")
    assert await run(bulkhead, variable.get) == "mine"


async def test_a_method_cannot_end_the_process_from_a_thread(bulkhead: Bulkhead) -> None:
    def leave() -> None:
        raise SystemExit(3)

    with pytest.raises(EscapedFromMethod, match="SystemExit"):
        await run(bulkhead, leave)
    assert await run(bulkhead, lambda: "still here") == "still here"
