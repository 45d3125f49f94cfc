"""Redis is there and slow: a call ends at its deadline, whatever it waits for."""

from __future__ import annotations

import asyncio
import time

import pytest
from faults.ear import percentile
from faults.fleet import Fleet, Replica
from faults.gauges import metric, syncs, until_bus
from faults.page import Page
from redis.asyncio import Redis

from callboard_local import FaultProxy, ValkeyServer
from callboard_local.fault_figures import Fault

pytestmark = pytest.mark.anyio

_DEADLINES_MS = (300, 1_500)
_CALLS_AT_A_TIME = 20
_ROUNDS = 5
_SLACK_S = 1.0
"""Beyond the 250 ms that a machine of its own keeps."""


def slow_down(proxy: FaultProxy, latency_ms: int | None) -> None:
    """Each round trip takes this long, give or take a tenth; None: one byte a second."""
    if latency_ms is None:
        proxy.bytes_per_s = 1
    else:
        proxy.delay_s = latency_ms / 2_000
        proxy.jitter_s = proxy.delay_s / 10


async def timed(one: Replica, name: str, timeout_ms: int) -> tuple[str, float]:
    """A keyed write: what became of it, and by how much it missed its deadline."""
    began = time.monotonic()
    reply = await one.call("LEDGER.append", name, user="ann", key=name, timeout_ms=timeout_ms)
    late_s = time.monotonic() - began - timeout_ms / 1_000
    return "OK" if reply["ok"] else reply["error"]["code"], late_s


@pytest.mark.fault(row=6)
@pytest.mark.parametrize("latency_ms", [50, 500, 2_000, None])
async def test_a_call_ends_at_its_deadline(own_valkey: ValkeyServer, latency_ms: int | None, fault: Fault) -> None:
    async with (
        FaultProxy(own_valkey.host, own_valkey.port) as proxy,
        Fleet(proxy) as fleet,
        Page("ann", lambda: fleet.replicas[0].ws_url) as page,
    ):
        (one,) = fleet.replicas
        await page.until(lambda page: page.number == 0)
        slow_down(proxy, latency_ms)
        codes: list[str] = []
        late: list[float] = []
        names: list[str] = []
        for deadline_ms in _DEADLINES_MS:
            for turn in range(_ROUNDS):
                batch = [f"{deadline_ms} {turn} {number}" for number in range(_CALLS_AT_A_TIME)]
                answers = await asyncio.gather(*(timed(one, name, deadline_ms) for name in batch))
                names += batch
                codes += [code for code, _ in answers]
                late += [late_s for _, late_s in answers]
        lag_s = await metric(one, "callboard_event_loop_lag_seconds")
        before = syncs(page)
        missed = await fleet.grow("ann")
        if latency_ms in (50, 500):
            await page.until(lambda page: page.number == missed)
            assert (syncs(page), await metric(one, "callboard_bus_gaps_total")) == (before, 0)  # slow is not away
        proxy.heal()
        await until_bus(one, "ok")
        await page.until(lambda page: page.number == missed, 60)
        runs = [await fleet.executions(name) for name in names]
        overshoot_s = max(0.0, percentile(late, 0.99))
        fault.figure(
            latency_ms="1 byte/s" if latency_ms is None else latency_ms, calls=len(late), overshoot_p99_s=overshoot_s,
            ok=codes.count("OK"), deadline_exceeded=codes.count("DEADLINE_EXCEEDED"),
            unavailable=codes.count("UNAVAILABLE"), loop_lag_s=lag_s,
        )  # fmt: skip
        assert overshoot_s < 0.25 + _SLACK_S
        assert set(codes) <= {"OK", "DEADLINE_EXCEEDED", "UNAVAILABLE"}
        assert max(runs) <= 1
        assert all(run == 1 for run, code in zip(runs, codes, strict=True) if code == "OK")
        if latency_ms == 50:
            assert "OK" in codes
        assert (page.breaches, page.closed) == ([], [])


@pytest.mark.fault(row=6, control=True)
@pytest.mark.parametrize("latency_ms", [6_000, None])
async def test_a_stock_client_knows_no_deadline(own_valkey: ValkeyServer, latency_ms: int | None, fault: Fault) -> None:
    async with (
        FaultProxy(own_valkey.host, own_valkey.port) as proxy,
        Redis(host=proxy.host, port=proxy.port) as stock,
    ):
        await stock.set("k", "v")
        slow_down(proxy, latency_ms)
        began = time.monotonic()
        calling = asyncio.create_task(get(stock))
        await asyncio.wait({calling}, timeout=_DEADLINES_MS[-1] / 1_000 + 0.25 + _SLACK_S)
        overshoot_s = time.monotonic() - began - _DEADLINES_MS[-1] / 1_000
        is_running = not calling.done()
        proxy.heal()
        proxy.reset()
        await asyncio.wait({calling})
    fault.figure(latency_ms="1 byte/s" if latency_ms is None else latency_ms, overshoot_s=f">{overshoot_s:.1f}")
    assert is_running


async def get(stock: Redis) -> object:
    return await stock.get("k")
