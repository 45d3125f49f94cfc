from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from callboard_local import FaultProxy, ValkeyServer

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def proxy(valkey_server: ValkeyServer) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(valkey_server.host, valkey_server.port) as proxy:
        yield proxy


@asynccontextmanager
async def connected(proxy: FaultProxy) -> AsyncIterator[Redis]:
    client = Redis(host=proxy.host, port=proxy.port, single_connection_client=True, retry=Retry(NoBackoff(), 0))
    async with client:
        yield client


async def answers(client: Redis, within_s: float = 0.3) -> bool:
    try:
        async with asyncio.timeout(within_s):
            return bool(await client.ping())
    except (RedisError, TimeoutError):
        return False


async def until_open(proxy: FaultProxy, count: int) -> None:
    async with asyncio.timeout(10):
        while proxy.open != count:
            await asyncio.sleep(0.005)


async def test_it_passes_everything_on(proxy: FaultProxy) -> None:
    async with connected(proxy) as client:
        value = b"\x00\r\n" * 400_000
        await client.set("callboard:test:proxy", value)
        assert await client.get("callboard:test:proxy") == value
        assert (proxy.open, proxy.accepted) == (1, 1)
    await until_open(proxy, 0)


async def test_latency_is_added_each_way_and_chunks_overlap(proxy: FaultProxy) -> None:
    async with connected(proxy) as client:
        await client.ping()
        proxy.delay_s = 0.05
        began = time.monotonic()
        await client.ping()
        assert time.monotonic() - began >= 0.1
        proxy.heal()
        assert await answers(client)


async def test_a_throttle_counts_bytes(proxy: FaultProxy) -> None:
    async with connected(proxy) as client:
        await client.ping()
        proxy.bytes_per_s = 100
        began = time.monotonic()
        await client.ping()  # 14 bytes there, 7 back
        assert time.monotonic() - began >= 0.2


async def test_those_who_said_something_are_lost_alone_and_gone_when_they_leave(proxy: FaultProxy) -> None:
    async with connected(proxy) as kept:
        async with connected(proxy) as lost:
            await lost.echo("mark")
            await kept.ping()
            proxy.lose(b"mark")
            assert not await answers(lost)
            assert await answers(kept)
        await until_open(proxy, 1)
    await until_open(proxy, 0)


async def test_new_connections_go_where_they_are_sent(proxy: FaultProxy, own_valkey: ValkeyServer) -> None:
    async with connected(proxy) as before:
        await before.ping()
        proxy.redirect(own_valkey.host, own_valkey.port)
        async with connected(proxy) as after:
            assert (await before.info("server"))["tcp_port"] != own_valkey.port
            assert (await after.info("server"))["tcp_port"] == own_valkey.port


async def test_idle_connections_are_cut_and_busy_ones_are_not(proxy: FaultProxy) -> None:
    proxy.idle_limit_s = 1.0
    async with connected(proxy) as idle, connected(proxy) as busy:
        await idle.ping()
        began = time.monotonic()
        while proxy.open == 2 or time.monotonic() - began < 2:
            await busy.ping()
            await asyncio.sleep(0.05)
            assert time.monotonic() - began < 20
        assert proxy.open == 1
        assert not await answers(idle)
        assert await answers(busy)


async def test_a_black_hole_takes_old_and_new_connections(proxy: FaultProxy) -> None:
    async with connected(proxy) as old:
        assert await answers(old)
        proxy.black_hole()
        assert not await answers(old)
        reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
        writer.write(b"PING\r\n")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.3)
        writer.close()
        proxy.heal()
    async with connected(proxy) as later:
        assert await answers(later)


async def test_lost_connections_stay_dead_and_new_ones_work(proxy: FaultProxy) -> None:
    async with connected(proxy) as old:
        assert await answers(old)
        proxy.lose()
        async with connected(proxy) as new:
            assert await answers(new)
        proxy.heal()
        assert not await answers(old)


async def test_a_reset_is_seen_at_once(proxy: FaultProxy) -> None:
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    await until_open(proxy, 1)
    proxy.reset()
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()
    await until_open(proxy, 0)


async def test_a_half_close_ends_what_the_client_reads(proxy: FaultProxy) -> None:
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    await until_open(proxy, 1)
    proxy.half_close()
    assert await reader.read() == b""
    assert proxy.open == 1
    writer.close()


async def test_a_reply_is_dropped_once_and_the_command_was_run(proxy: FaultProxy, valkey_server: ValkeyServer) -> None:
    async with connected(proxy) as client, Redis(host=valkey_server.host, port=valkey_server.port) as direct:
        await client.delete("callboard:test:dropped")
        proxy.drop_reply(b"INCR")
        with pytest.raises(RedisError):
            await client.incr("callboard:test:dropped")
        assert await direct.get("callboard:test:dropped") == b"1"
        assert await client.incr("callboard:test:dropped") == 2
        assert proxy.dropped == 1


async def test_it_refuses_and_accepts_on_one_port(proxy: FaultProxy) -> None:
    async with connected(proxy) as client:
        assert await answers(client)
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(proxy.host, proxy.port)
        assert await answers(client)
        await proxy.accept()
    async with connected(proxy) as client:
        assert await answers(client)


async def test_a_server_that_is_away_is_a_closed_connection(own_valkey: ValkeyServer) -> None:
    async with FaultProxy(own_valkey.host, own_valkey.port) as proxy:
        await own_valkey.kill()
        reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
        assert await reader.read() == b""
        writer.close()
