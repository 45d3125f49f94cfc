"""Connections that nobody ends: the peer is gone, and no packet says so."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from faults.ear import UNWATCHED, Ear, Pulse, ear, eventually
from faults.fleet import Address, Fleet
from faults.gauges import metric, syncs, until_bus
from faults.netns import Island
from faults.page import Page
from redis.asyncio import Redis

from callboard.clients import PlainOrTlsConnection, Subscriber
from callboard.errors import Unavailable
from callboard_local import FaultProxy, ValkeyServer
from callboard_local.fault_figures import Fault
from callboard_local.server import in_thread

pytestmark = pytest.mark.anyio

_TESTS = Path(__file__).parents[1]
_IDLE = 40


class Stock:
    """A process of `faults.stock`."""

    def __init__(self, process: asyncio.subprocess.Process, seconds: float) -> None:
        self._process = process
        self._seconds = seconds

    def begin(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")

    async def report(self) -> dict[str, Any]:
        """What it went through. TimeoutError when it is stuck for good."""
        assert self._process.stdout is not None
        async with asyncio.timeout(self._seconds + 30):
            report: dict[str, Any] = json.loads(await self._process.stdout.readline())
        return report


@asynccontextmanager
async def stock(
    redis: Address, *, seconds: float, user_timeout_s: float = 20, fill: bool = False
) -> AsyncIterator[Stock]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "faults.stock", redis.host, str(redis.port), str(seconds),
        str(int(user_timeout_s * 1000)), *(["fill"] if fill else []),
        cwd=_TESTS, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        async with asyncio.timeout(30):
            assert await process.stdout.readline() == b"ready\n"
        yield Stock(process, seconds)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.mark.fault(row=4)
async def test_replicas_in_a_black_hole(own_valkey: ValkeyServer, fault: Fault) -> None:
    async with (
        FaultProxy(own_valkey.host, own_valkey.port) as proxy,
        Fleet(proxy, count=2) as fleet,
        Page("ann", lambda: fleet.replicas[0].ws_url) as page,
    ):
        await page.until(lambda page: page.number == 0)
        before, open_before = syncs(page), proxy.open
        proxy.black_hole()
        detected = await asyncio.gather(*(until_bus(each, "down") for each in fleet.replicas))
        lags = [await metric(each, "callboard_event_loop_lag_seconds") for each in fleet.replicas]
        missed = await fleet.grow("ann")
        proxy.heal()
        recovery_s = max(await asyncio.gather(*(until_bus(each, "ok") for each in fleet.replicas)))
        await page.until(lambda page: page.number == missed and syncs(page) > before)
        fault.figure(detect_s=max(detected), recovery_s=recovery_s, loop_lag_max_s=max(lags))
        assert max(detected) <= 30
        assert max(lags) < 0.5
        assert (page.breaches, page.closed) == ([], [])
        # A pool keeps what its replica needed at once when Redis was back: to renew, to beat, to read syncs.
        await eventually(lambda: proxy.open <= open_before + 20)


@pytest.mark.fault(row=4, control=True)
async def test_a_stock_client_never_notices_a_black_hole(own_valkey: ValkeyServer, fault: Fault) -> None:
    async with FaultProxy(own_valkey.host, own_valkey.port) as proxy, stock(proxy, seconds=32) as control:
        proxy.black_hole()
        control.begin()
        report = await control.report()
    fault.figure(unnoticed_for_s=len(report["rounds"]), is_connected=report["is_connected"])
    assert len(report["rounds"]) >= 30
    assert (report["errors"], report["is_connected"]) == ([], True)


@pytest.mark.fault(row=4, control="within")
async def test_a_cable_is_cut(tmp_path: Path, fault: Fault) -> None:
    """Where no network namespace can be made, the proxy's black hole stands in; then no time-out of the kernel acts."""
    real = await in_thread(Island.can_be_made)
    async with AsyncExitStack() as stack:
        redis: Island | FaultProxy
        if real:
            redis = await stack.enter_async_context(Island(tmp_path))
            cut = redis.cut
        else:
            server = await stack.enter_async_context(ValkeyServer())
            redis = await stack.enter_async_context(FaultProxy(server.host, server.port))
            cut = redis.black_hole
        fleet = await stack.enter_async_context(Fleet(redis))
        (one,) = fleet.replicas
        page = await stack.enter_async_context(Page("ann", lambda: one.ws_url))
        await page.until(lambda page: page.number == 0)
        unwatched = await stack.enter_async_context(ear(redis, **UNWATCHED))
        control = await stack.enter_async_context(stock(redis, seconds=40))
        before = syncs(page)
        await in_thread(cut)
        control.begin()
        async with Pulse() as pulse:
            detect_s = await until_bus(one, "down")
            assert unwatched.bus.state == "ok"
            if real:  # what the watchdog does not see, the kernel ends at last, with ETIMEDOUT
                kernel_s = detect_s + await eventually(lambda: unwatched.bus.state == "down", 60)
                [line] = unwatched.recorded.lines("bus_down")
                fault.figure(kernel_detect_s=kernel_s, reason=line["reason"])
                assert "110" in line["reason"]
            report = await control.report()
        lag_s = await metric(one, "callboard_event_loop_lag_seconds")
        missed = await fleet.grow("ann")
        await in_thread(redis.heal)
        recovery_s = await until_bus(one, "ok")
        await page.until(lambda page: page.number == missed and syncs(page) > before)
        last = report["rounds"][-1]
        fault.figure(
            netns=real, detect_s=detect_s, recovery_s=recovery_s, loop_lag_max_s=lag_s, heartbeats_per_s=pulse.per_s,
            loop_lag_at_etimedout_s=pulse.worst_lag_s, stock_heartbeats_per_s=last["beats"],
            stock_empty_reads_per_s=last["calls"],
        )  # fmt: skip
        assert detect_s <= 30
        assert pulse.per_s > 10
        assert report["errors"] == []  # it either spins or waits, and says nothing
        assert report["is_connected"]
        assert (last["beats"] == 0) == real
        assert (page.breaches, page.closed) == ([], [])


@pytest.mark.fault(row=4, control="within")
async def test_a_pubsub_socket_dies_of_etimedout(own_valkey: ValkeyServer, fault: Fault) -> None:
    """The kernel's own verdict, on the loopback: the server is stopped, its window full, TCP_USER_TIMEOUT over."""
    options = {socket.TCP_USER_TIMEOUT: 2_000}
    connection = PlainOrTlsConnection(
        host=own_valkey.host, port=own_valkey.port, protocol=2, driver_info=None, socket_keepalive=True,
        socket_keepalive_options=options,
    )  # fmt: skip
    subscriber = Subscriber(connection)
    await subscriber.connect()
    async with stock(own_valkey, seconds=12, user_timeout_s=2, fill=True) as control:
        own_valkey.pause()
        control.begin()
        subscriber.send(*[("SUBSCRIBE", f"user:{number:0100d}") for number in range(100_000)])
        async with Pulse() as pulse, asyncio.timeout(40):
            with pytest.raises(OSError, match="110") as death:
                await subscriber.receive()
            await subscriber.close()
            report = await control.report()
        own_valkey.resume()
    last = report["rounds"][-1]
    fault.figure(
        died_of=type(death.value).__name__, heartbeats_per_s=pulse.per_s, stock_heartbeats_per_s=last["beats"],
        stock_empty_reads_per_s=last["calls"],
    )  # fmt: skip
    assert pulse.per_s > 10
    assert (report["errors"], report["is_connected"]) == ([], True)
    assert last["beats"] == 0
    assert last["calls"] > 100


@pytest.mark.fault(row=4)
@pytest.mark.parametrize("who", ["subscriber", "publisher", "both"])
async def test_half_of_a_connection_is_lost(own_valkey: ValkeyServer, who: str, fault: Fault) -> None:
    said = {"subscriber": b"SUBSCRIBE", "publisher": b"PUBLISH", "both": b""}[who]
    async with (
        FaultProxy(own_valkey.host, own_valkey.port) as proxy,
        ear(proxy) as one,
        ear(proxy, **UNWATCHED) as control,
        Redis(port=own_valkey.port) as sender,
    ):
        proxy.lose(said)
        await sender.publish("user:u", json.dumps({"id": "lost"}))
        if who == "publisher":
            await eventually(lambda: one.heard == control.heard == ["lost"])
            probed_at = one.bus.probed_at
            proved_s = await eventually(lambda: one.bus.probed_at != probed_at)
            fault.figure(proved_again_s=proved_s)
            assert one.gaps == 0
        else:
            detect_s = await eventually(lambda: one.bus.state == "down")
            gap_s = await eventually(lambda: one.gaps)
            await sender.publish("user:u", json.dumps({"id": "next"}))
            await eventually(lambda: one.heard == ["next"])
            fault.figure(detect_s=detect_s, gap_s=gap_s, control_heard=len(control.heard), control_gaps=control.gaps)
            assert detect_s <= 15
            # The control starves, and nobody tells it.
            assert (control.story, control.bus.state) == ([], "ok")


@pytest.mark.fault(row=4, control="within")
async def test_idle_connections_are_lost_with_the_bus(own_valkey: ValkeyServer, fault: Fault) -> None:
    """What the silence of one connection says of its neighbours; the control's are not told."""
    async with (
        FaultProxy(own_valkey.host, own_valkey.port) as proxy,
        ear(proxy) as one,
        ear(proxy, **UNWATCHED) as control,
    ):
        for each in (one, control):
            assert await failures(each) == 0
        proxy.lose()
        await eventually(lambda: one.gaps)
        failed, control_failed = await failures(one), await failures(control)
        fault.figure(idle=_IDLE, failed=failed, control_failed=control_failed)
        assert failed == 0
        assert control_failed > _IDLE / 2


async def failures(one: Ear) -> int:
    """How many of as many publishers at a time are refused."""
    outcomes = await asyncio.gather(*(one.tell(str(number)) for number in range(_IDLE)), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} <= {type(None), Unavailable}
    return sum(outcome is not None for outcome in outcomes)


@pytest.mark.fault(row=4, control="within")
async def test_a_server_that_answers_and_delivers_nothing(own_valkey: ValkeyServer, fault: Fault) -> None:
    """A primary that was replaced lives on, and answers; only the subscribers have not been told."""
    async with (
        ValkeyServer() as successor,
        FaultProxy(own_valkey.host, own_valkey.port) as proxy,
        ear(proxy) as one,
        ear(proxy, **UNWATCHED) as control,
        Redis(port=own_valkey.port) as old,
        Redis(port=successor.port) as new,
    ):
        proxy.redirect(successor.host, successor.port)
        await old.client_kill_filter(_type="normal", skipme=True)
        detect_s = await eventually(lambda: one.bus.state == "down")
        await eventually(lambda: one.gaps)
        await one.tell("from the new primary")
        await eventually(lambda: one.heard)
        await new.publish("user:u", json.dumps({"id": "last"}))
        await eventually(lambda: len(one.heard) > 1)
        subscribers = int((await old.pubsub_numsub("user:u"))[0][1])
        fault.figure(detect_s=detect_s, control_heard=len(control.heard), control_gaps=control.gaps)
        assert detect_s <= 15
        assert one.story == [None, "from the new primary", "last"]
        assert await old.ping()
        assert subscribers == 1  # the control, whose connection is in the best of health
        assert (control.story, control.bus.state) == ([], "ok")
