"""Sync methods that take longer than their callers wait, and more of them than there are threads."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from faults.fleet import Fleet, Replica

from callboard_local import ValkeyServer
from callboard_local.fault_figures import Fault

pytestmark = pytest.mark.anyio
THREADS = 16
"""LISTENERS_NAMESPACE_THREADS, by default; as many calls may wait."""
BLOCKING_CALLS = 200


@pytest.fixture
async def fleet(own_valkey: ValkeyServer) -> AsyncIterator[Fleet]:
    async with Fleet(own_valkey, count=2) as fleet:
        yield fleet


@pytest.mark.fault(row=17)
async def test_what_a_thread_says_too_late_is_kept_for_the_retry(fleet: Fleet, fault: Fault) -> None:
    one, two = fleet.replicas
    names = [f"late-{number}" for number in range(THREADS)]
    late_by: list[float] = []

    async def overrun(name: str) -> None:
        began = time.monotonic()
        reply = await one.call("LEDGER.block_write", name, 6.0, key=name, timeout_ms=1_000)
        assert reply["error"]["code"] == "DEADLINE_EXCEEDED"
        late_by.append(time.monotonic() - began - 1.0)

    await asyncio.gather(*map(overrun, names))
    # Every thread is taken still: async methods go on, and a sync one waits for its turn.
    assert (await one.call("LEDGER.whoami"))["ok"]
    waiting = asyncio.create_task(one.call("LEDGER.block", 0.0))
    retries = await asyncio.gather(
        *(two.call("LEDGER.block_write", name, 6.0, key=name, timeout_ms=60_000) for name in names)
    )
    assert [reply.get("data") for reply in retries] == [1] * THREADS
    assert [await fleet.executions(name) for name in names] == [1] * THREADS
    assert (await waiting)["ok"]
    again = await asyncio.gather(*(one.call("LEDGER.block", 0.1) for _ in range(THREADS)))  # all threads are back
    assert all(reply["ok"] for reply in again)
    fault.figure(
        overrun=THREADS, late_stored_percent=100 * len(retries) // THREADS, executions_max=1,
        deadline_overshoot_max_s=max(late_by), threads_back=len(again),
    )  # fmt: skip


@pytest.mark.fault(row=17, control=True)
async def test_without_a_key_what_a_thread_says_too_late_is_lost(fleet: Fleet, fault: Fault) -> None:
    one, two = fleet.replicas
    first = await one.call("LEDGER.block_write", "late", 2.0, timeout_ms=500)
    assert first["error"]["code"] == "DEADLINE_EXCEEDED"
    assert (await two.call("LEDGER.block_write", "late", 0.0))["data"] == 2
    fault.figure(executions_max=await fleet.executions("late"))


async def health_while(replica: Replica, work: asyncio.Future[Any]) -> list[float]:
    """How long /healthz took, asked over and over until `work` is done; sorted."""
    took = []
    while not work.done():
        began = time.monotonic()
        assert (await replica.client.get("/healthz")).status_code == 200
        took.append(time.monotonic() - began)
        await asyncio.sleep(0.01)
    return sorted(took)


@pytest.mark.fault(row=18)
async def test_blocking_calls_exhaust_their_namespace_alone(fleet: Fleet, fault: Fault) -> None:
    one, _ = fleet.replicas
    codes: Counter[str] = Counter()

    async def block() -> None:
        reply = await one.call("LEDGER.block", 4.0, timeout_ms=30_000)
        codes["OK" if reply["ok"] else reply["error"]["code"]] += 1
        if not reply["ok"]:
            assert reply["error"]["retry_after_ms"] > 0

    took = await health_while(one, asyncio.gather(*(block() for _ in range(BLOCKING_CALLS))))
    p99 = took[int(len(took) * 0.99)]
    fault.figure(calls=BLOCKING_CALLS, served=codes["OK"], refused=codes["RESOURCE_EXHAUSTED"], healthz_p99_s=p99)
    # As many as there are threads run, as many wait, and the others are refused at once.
    assert codes["OK"] + codes["RESOURCE_EXHAUSTED"] == BLOCKING_CALLS
    assert codes["OK"] >= 2 * THREADS
    assert codes["RESOURCE_EXHAUSTED"] > 0
    assert p99 < 4.0
    assert (await one.call("LEDGER.block", 0.0))["ok"]


@pytest.mark.fault(row=18, control=True)
async def test_a_method_that_blocks_the_loop_stops_everything(fleet: Fleet, fault: Fault) -> None:
    one, _ = fleet.replicas
    took = await health_while(one, asyncio.create_task(one.call("LEDGER.stall", 4.0)))
    fault.figure(calls=1, healthz_p99_s=took[-1])
    assert took[-1] > 2.0
