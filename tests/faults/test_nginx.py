"""deploy/nginx.conf, before real replicas: sockets pass, the dead are left alone, and no POST is sent twice."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from faults.fleet import TOKEN, Fleet
from faults.nginx import CONFIGURATION, Nginx
from faults.page import Page

from callboard import server
from callboard.settings import Settings
from callboard_local import ValkeyServer

pytestmark = [pytest.mark.anyio, pytest.mark.nginx]

RESENDS = {"error timeout http_503;": "error timeout http_503 non_idempotent;"}


@asynccontextmanager
async def client_of(nginx: Nginx) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(base_url=nginx.url, headers=headers, timeout=30) as client:
        yield client


async def who(client: httpx.AsyncClient) -> str:
    return str((await client.post("/rpc", json={"method": "LEDGER.whoami"})).json()["data"])


async def test_calls_and_sockets_go_through_and_a_dead_replica_is_left_alone(own_valkey: ValkeyServer) -> None:
    async with Fleet(own_valkey, count=3) as fleet, Nginx([each.port for each in fleet.replicas]) as nginx:
        async with client_of(nginx) as client, Page("ann", lambda: nginx.ws_url) as page:
            async with asyncio.timeout(20):
                seen: set[str] = set()
                while len(seen) < 3:
                    seen.add(await who(client))
            await page.until(lambda page: page.number == 0)
            await fleet.replicas[0].kill()
            # Refused connections are not failures of the caller's: another replica has the call.
            assert {await who(client) for _ in range(30)} == {"r2", "r3"}
            await page.until(lambda page: page.is_connected)
            await fleet.grow("ann")
            await page.until(lambda page: page.number == 1)
            assert page.breaches == []
            answer = await client.post("/rpc", content=b"x" * 1_500_000, headers={"Content-Type": "application/json"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (413, "INVALID_ARGS")
            upgrade = {"Connection": "upgrade", "Upgrade": "h2c"}
            answers = [await client.get(path, headers=upgrade) for path in ("/readyz", "/ws")]
            assert [answer.status_code for answer in answers] == [200, 404]
            assert (await client.get("/debug")).status_code == (await client.get("/metrics")).status_code == 404
        assert any(" GET /ws 101 " in line for line in nginx.access_log)
        assert "ann" not in "\n".join(nginx.access_log)


@pytest.mark.parametrize("resends", [False, True])
async def test_a_call_whose_replica_dies_is_not_sent_to_another(own_valkey: ValkeyServer, resends: bool) -> None:
    """`resends` is the control: with `non_idempotent` in the configuration the call runs twice."""
    async with Fleet(own_valkey, count=3) as fleet:
        ports = [each.port for each in fleet.replicas]
        async with Nginx(ports, changes=RESENDS if resends else None) as nginx, client_of(nginx) as client:
            call = {"method": "LEDGER.append", "args": ["a"], "kwargs": {"hold_s": 5}}
            calling = asyncio.create_task(client.post("/rpc", json=call))
            async with asyncio.timeout(20):
                while not await fleet.executions("a"):
                    await asyncio.sleep(0.01)
            (name,) = await fleet.truth.lrange("ran:a", 0, -1)
            await next(each for each in fleet.replicas if each.name == name).kill()
            answer = await calling
            assert answer.status_code == (200 if resends else 502)
            assert await fleet.executions("a") == (2 if resends else 1)


@pytest.mark.parametrize("quotes", [False, True])
async def test_no_log_names_a_user_whose_replica_is_away(quotes: bool) -> None:
    """`quotes` is the control: nginx's own error log quotes the query of /ws."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    async with Nginx([port], changes={"error_log /dev/null emerg;": ""} if quotes else None) as nginx:
        async with client_of(nginx) as client:
            upgrade = {"Connection": "upgrade", "Upgrade": "websocket"}
            assert (await client.get("/ws?uid=annabel", headers=upgrade)).status_code == 502
            assert (await client.post("/rpc")).status_code == 502
        async with asyncio.timeout(20):
            while "POST /rpc" not in nginx.error_log:
                await asyncio.sleep(0.01)
        assert ("annabel" in nginx.error_log) is quotes
        assert "annabel" not in "\n".join(nginx.access_log)


def test_the_time_outs_agree_with_the_service() -> None:
    text = CONFIGURATION.read_text()
    read_timeouts = [int(found) for found in re.findall(r"proxy_read_timeout (\d+)s", text)]
    keep_alive = int(*re.findall(r" keepalive_timeout (\d+)s", text))
    assert read_timeouts[0] > Settings().max_timeout_ms / 1000
    assert read_timeouts[1] > 2 * Settings().ping_interval_s
    assert keep_alive < server._KEEP_ALIVE_S
    largest_body_mib = int(*re.findall(r"client_max_body_size (\d+)m", text))
    assert largest_body_mib * 1024 * 1024 > Settings().max_body_bytes
