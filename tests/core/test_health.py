from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from callboard import Service, hookimpl, method
from callboard.health import CHECK_TIMEOUT_S
from callboard.testing import Service as Running
from callboard.testing import serving
from callboard_local import ValkeyServer

pytestmark = pytest.mark.anyio


class Sick(Service):
    namespace = "SICK"

    @method(effect="read")
    async def work(self) -> int:
        return 1

    async def health(self) -> dict[str, Any]:
        raise ConnectionError("postgres://user:s3cret@host")


class Odd(Service):
    namespace = "ODD"

    async def health(self) -> dict[str, Any]:
        return ["fine"]  # type: ignore[return-value]


class Well(Service):
    namespace = "WELL"


class plugin:  # noqa: N801 - stands for a module
    @staticmethod
    @hookimpl
    def register_services() -> list[type[Service]]:
        return [Sick, Odd, Well]

    @staticmethod
    @hookimpl
    def register_health_checks() -> dict[str, Any]:
        async def hang() -> dict[str, Any]:
            await asyncio.sleep(600)
            return {}

        async def report_no_json() -> dict[str, Any]:
            return {"status": object()}

        return {"firestore": hang, "odd": report_no_json}


@pytest.fixture
async def service(own_valkey: ValkeyServer) -> AsyncIterator[Running]:
    environ = {"LISTENERS_REDIS_HOST": "127.0.0.1", "LISTENERS_REDIS_PORT": str(own_valkey.port)}
    environ["LISTENERS_SERVICE_TOKENS"] = "reader:limited:SICK.*;ops:operator:*"
    async with serving(plugin, environ=environ) as running:
        yield running


@pytest.fixture
async def client(service: Running) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=service.url, headers={"Authorization": "Bearer test"}, timeout=30) as made:
        yield made


async def test_healthz(client: httpx.AsyncClient) -> None:
    body = (await client.get("/healthz")).json()
    assert body.keys() == {"status", "version", "listeners_count", "workflow_listeners_count", "redis", "uptime_s"}
    assert (body["status"], body["redis"], body["listeners_count"]) == ("ok", "ok", 0)


async def test_healthz_answers_while_redis_and_firestore_hang(
    client: httpx.AsyncClient, own_valkey: ValkeyServer
) -> None:
    own_valkey.pause()
    try:
        with pytest.raises(TimeoutError):  # negative control: what asks Firestore's check does wait
            async with asyncio.timeout(CHECK_TIMEOUT_S / 2):
                await client.get("/debug")
        async with asyncio.timeout(CHECK_TIMEOUT_S / 2):
            for _ in range(20):
                assert (await client.get("/healthz")).status_code == 200
                assert (await client.get("/readyz")).status_code == 200
    finally:
        own_valkey.resume()


async def test_readyz(client: httpx.AsyncClient) -> None:
    assert (await client.get("/readyz")).json()["status"] == "ready"
    until = time.monotonic() + 10
    while (await client.get("/readyz?strict=1")).status_code != 200:
        assert time.monotonic() < until
    assert (await client.get("/readyz?strict=1")).json()["bus_proved"] is True


async def test_a_namespaces_own_check(client: httpx.AsyncClient) -> None:
    assert (await client.get("/healthz/WELL")).json() == {"status": "ok"}
    sick = await client.get("/healthz/SICK")
    assert (sick.status_code, sick.json()) == (503, {"status": "down", "error": "ConnectionError"})
    odd = await client.get("/healthz/ODD")
    assert (odd.status_code, odd.json()) == (503, {"status": "down", "error": "TypeError"})
    unknown = await client.get("/healthz/OTHER")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "METHOD_NOT_FOUND")


async def test_debug_needs_the_token(client: httpx.AsyncClient) -> None:
    assert (await client.get("/debug", headers={"Authorization": ""})).status_code == 401
    assert (await client.get("/debug", headers={"Authorization": "Bearer wrong"})).status_code == 403
    assert (await client.get("/debug", headers={"Authorization": "Bearer limited"})).status_code == 403
    assert (await client.get("/debug", headers={"Authorization": "Bearer operator"})).status_code == 200


async def test_debug_shows_what_runs_and_no_secret(client: httpx.AsyncClient) -> None:
    response = await client.get("/debug")
    body = response.json()
    assert body["redis"]["status"] == "ok"
    assert body["firestore"] == {"status": "down", "error": "TimeoutError"}
    assert body["external"] == {"odd": {"status": "down", "error": "TypeError"}}
    assert body["workflow_listeners"] == {"status": "not installed"}
    (shown,) = body["plugins"]
    assert shown["namespaces"][0]["methods"] == ["SICK.work"]
    assert (shown["state"], body["listeners"]) == ("ready", [])
    assert "s3cret" not in response.text
    assert "Bearer" not in response.text


async def test_metrics(client: httpx.AsyncClient, service: Running) -> None:
    await service.call("SICK.work")
    response = await client.get("/metrics", headers={"Authorization": ""})
    assert response.headers["content-type"].startswith("text/plain")
    assert 'callboard_rpc_duration_seconds_count{code="OK",method="SICK.work",namespace="SICK"} 1.0' in response.text


async def test_tasks_are_counted_when_the_metrics_are_read(client: httpx.AsyncClient, service: Running) -> None:
    before = await tasks_of(client)
    idle = [asyncio.create_task(asyncio.Event().wait()) for _ in range(50)]
    try:
        assert await tasks_of(client) - before > 40
    finally:
        for task in idle:
            task.cancel()
        await asyncio.wait(idle)
    assert await tasks_of(client) - before < 10


async def tasks_of(client: httpx.AsyncClient) -> float:
    lines = (await client.get("/metrics")).text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("callboard_tasks "))


async def test_metrics_behind_a_token(own_valkey: ValkeyServer) -> None:
    environ = {
        "LISTENERS_REDIS_HOST": "127.0.0.1",
        "LISTENERS_REDIS_PORT": str(own_valkey.port),
        "LISTENERS_METRICS_TOKEN": "m3trics",
    }
    async with serving(plugin, environ=environ) as service, httpx.AsyncClient(base_url=service.url) as client:
        right, wrong = ("Authorization", "Bearer m3trics"), ("Authorization", "Bearer metrics")
        for given in ([], [wrong], [right, wrong], [right, right]):
            refused = await client.get("/metrics", headers=given)
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert (await client.get("/metrics", headers=[right])).status_code == 200


async def test_version(client: httpx.AsyncClient) -> None:
    body = (await client.get("/version")).json()
    assert body["api_versions"] == ["v1"]
    assert body["plugins"] == {"plugin": "0"}
