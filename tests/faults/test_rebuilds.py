"""A bus that loses its connection again and again, or is closed in the middle of that, leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import subprocess
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from faults.ear import BRISK, ear, eventually, tasks
from faults.fleet import Fleet
from faults.gauges import syncs, until_bus
from faults.page import Page
from redis.asyncio import SSLConnection

from callboard.clients import PlainOrTlsConnection
from callboard_local import FaultProxy, ValkeyServer
from callboard_local.fault_figures import Fault

pytestmark = pytest.mark.anyio

_CYCLES = 50
_SOCKETS = 200


def fds() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.fault(row=(1, 4))
async def test_fifty_rebuilds_leave_nothing_behind(own_valkey: ValkeyServer, fault: Fault) -> None:
    async with FaultProxy(own_valkey.host, own_valkey.port) as proxy, ear(proxy, **BRISK) as one:
        await one.tell("before")
        await eventually(lambda: one.heard)
        start = tasks(), fds(), proxy.open
        for cycle in range(_CYCLES):
            break_it = (proxy.reset, proxy.lose, proxy.half_close)[cycle % 3]
            break_it()
            await eventually(lambda: one.gaps > cycle and one.bus.state == "ok")  # noqa: B023 - within the turn
            await one.tell(f"after {cycle}")
            await eventually(lambda: one.heard[-1] == f"after {cycle}")  # noqa: B023
        await eventually(lambda: (tasks(), fds(), proxy.open) == start)
        fault.figure(
            cycles=_CYCLES, gaps=one.gaps, tasks_grown=(tasks() - start[0]).total(), fds_grown=fds() - start[1],
            connections_grown=proxy.open - start[2], connections_made=proxy.accepted,
        )  # fmt: skip
        assert one.gaps == _CYCLES
        assert len(one.heard) == _CYCLES + 1


@pytest.mark.fault(row=(1, 4))
async def test_fifty_rebuilds_leave_nothing_behind_in_a_replica(own_valkey: ValkeyServer, fault: Fault) -> None:
    async with (
        FaultProxy(own_valkey.host, own_valkey.port) as proxy,
        Fleet(proxy) as fleet,
        Page("ann", lambda: fleet.replicas[0].ws_url) as page,
    ):
        (one,) = fleet.replicas
        await page.until(lambda page: page.number == 0)
        for cycle in range(_CYCLES):
            before = syncs(page)
            proxy.reset()
            await eventually(lambda: syncs(page) > before)  # noqa: B023 - within the turn
            await until_bus(one, "ok")
            if cycle == 2:
                start, open_before = one.cost, proxy.open
        end = one.cost
        fault.figure(
            cycles=_CYCLES, threads_grown=end.threads - start.threads, fds_grown=end.fds - start.fds,
            connections_grown=proxy.open - open_before, mib_grown=(end.rss - start.rss) / 2**20,
        )  # fmt: skip
        assert end.threads <= start.threads + 1
        assert end.fds <= start.fds + 3
        assert proxy.open <= open_before + 3
        assert (page.breaches, page.closed) == ([], [])


@pytest.mark.tls
@pytest.mark.fault(row=4, control="within")
async def test_a_hung_tls_peer_keeps_no_socket(tmp_path: Path, fault: Fault) -> None:
    async with tls_server(tmp_path) as (port, authority), FaultProxy("127.0.0.1", port) as proxy:
        tls = ssl.create_default_context(cafile=str(authority))
        ours = [PlainOrTlsConnection(host=proxy.host, port=proxy.port, tls=tls, **BARE) for _ in range(10)]
        theirs = [SSLConnection(host=proxy.host, port=proxy.port, ssl_ca_certs=str(authority), **BARE) for _ in ours]
        connections: list[Any] = [*ours, *theirs]
        await asyncio.gather(*(each.connect() for each in connections))
        assert proxy.open == 20
        proxy.lose()
        await asyncio.gather(*(each.disconnect(nowait=True) for each in connections))
        await eventually(lambda: proxy.open == 10)
        left = fds()
        await asyncio.gather(*(each.disconnect(nowait=True) for each in connections))
        fault.figure(sockets_left=proxy.open - 10, stock_sockets_left=proxy.open)
        assert (proxy.open, fds()) == (10, left)


BARE: dict[str, Any] = {"protocol": 2, "driver_info": None}
"""A connection that says nothing of its own accord."""


@asynccontextmanager
async def tls_server(folder: Path) -> AsyncIterator[tuple[int, Path]]:
    """One that shakes hands and is silent then: its port, and the authority to trust."""
    certificate, key = folder / "server.pem", folder / "server.key"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    open_ones: list[asyncio.StreamWriter] = []

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_ones.append(writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1], certificate
    finally:
        server.close()
        for writer in open_ones:
            writer.transport.abort()
        await server.wait_closed()


# -- closing in the middle --------------------------------------------------------------------------------------------


@pytest.mark.fault(row=4)
@pytest.mark.parametrize("what", ["reset", "black_hole", "refuse"])
async def test_it_closes_at_any_moment_of_a_rebuild(own_valkey: ValkeyServer, what: str, fault: Fault) -> None:
    async with FaultProxy(own_valkey.host, own_valkey.port) as proxy:
        start = tasks()
        for moment in range(60):
            async with ear(proxy, **BRISK) as one:
                getattr(proxy, what)()
                if what == "refuse":
                    proxy.reset()
                for _ in range(moment):
                    await asyncio.sleep(0)
                async with asyncio.timeout(20):
                    await one.bus.__aexit__(None, None, None)
                assert not [name for name in tasks() if name.startswith("event bus")]
            proxy.heal()
            await proxy.accept()
            await eventually(lambda: tasks() == start and proxy.open == 0)
        fault.figure(moments=60, tasks_left=(tasks() - start).total())


@pytest.mark.fault(row=3)
async def test_a_replica_stops_while_redis_hangs(own_valkey: ValkeyServer, fault: Fault) -> None:
    async with Fleet(own_valkey) as fleet, Page("ann", lambda: fleet.replicas[0].ws_url) as page:
        (one,) = fleet.replicas
        await page.until(lambda page: page.number == 0)
        own_valkey.pause()
        loop = asyncio.get_running_loop()
        began = loop.time()
        status = await one.stop()
        fault.figure(exit_s=loop.time() - began, exit_status=status)
        assert status == 0
        assert page.closed[0] == 3001
        own_valkey.resume()


# -- everybody at once ------------------------------------------------------------------------------------------------


@pytest.mark.fault(row=1)
async def test_two_hundred_sockets_do_not_ask_at_once(own_valkey: ValkeyServer, fault: Fault) -> None:
    async with Fleet(own_valkey, count=2) as fleet, AsyncExitStack() as stack:
        pages = [
            await stack.enter_async_context(Page(f"u{number}", lambda one=one: one.ws_url))  # type: ignore[misc]
            for number in range(_SOCKETS // 2)
            for one in fleet.replicas
        ]
        await eventually(lambda: all(page.number is not None for page in pages), 60)
        before = [len(page.events) for page in pages]
        await own_valkey.restart()
        await eventually(lambda: all(synced(page, seen) for page, seen in zip(pages, before, strict=True)), 60)
        asked = [
            datetime.fromisoformat(event["as_of"]).timestamp()
            for page, seen in zip(pages, before, strict=True)
            for event in page.events[seen:]
            if event["type"] == "count.sync" and "fence" not in event
        ]
        ups = []
        for one in fleet.replicas:
            lines = [json.loads(line) for line in one.log.read_text().splitlines() if '"bus_up"' in line]
            ups.append(datetime.fromisoformat(lines[-1]["timestamp"]).timestamp())
        tenths = Counter(int(at * 10) for at in asked)
        seconds = Counter(int(at) for at in asked)
        fault.figure(
            sockets=len(pages), snapshots=len(asked), over_s=max(asked) - min(asked),
            peak_in_a_tenth=max(tenths.values()), peak_in_a_second=max(seconds.values()),
            replicas_apart_s=max(ups) - min(ups),
        )  # fmt: skip
        assert [page.closed for page in pages] == [[]] * len(pages)
        assert max(tenths.values()) < len(pages) / 2


def synced(page: Page, seen: int) -> bool:
    return any(event["type"] == "count.sync" and "fence" not in event for event in page.events[seen:])
