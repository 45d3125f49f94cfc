"""A back end that hangs costs its own namespace, within the deadline of each call, and nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

import callboard_firebase_management
import callboard_registry
from callboard.testing import Service, serving
from callboard_local import FirestoreProcess, ValkeyServer

pytestmark = pytest.mark.anyio
PLUGINS = (callboard_firebase_management, callboard_registry)
READ = {"method": "FIREBASE_MANAGEMENT.get_document", "args": ["clients/demo"], "timeout_ms": 700}
WRITE = {"method": "FIREBASE_MANAGEMENT.set_document", "args": ["clients/demo", {"x": 1}], "timeout_ms": 700}
HUNG_CALLS = 200
"""More than a namespace has slots for, and more than may wait for one."""


@pytest.fixture
async def firestore() -> AsyncIterator[FirestoreProcess]:
    async with FirestoreProcess() as server:
        yield server


@pytest.fixture
async def service(valkey_server: ValkeyServer, firestore: FirestoreProcess) -> AsyncIterator[Service]:
    environ = {
        "LISTENERS_REDIS_HOST": "127.0.0.1",
        "LISTENERS_REDIS_PORT": str(valkey_server.port),
        "FIRESTORE_EMULATOR_HOST": firestore.address,
        "GOOGLE_PROJECT_ID": "demo",
    }
    async with serving(*PLUGINS, environ=environ) as running:
        yield running


@pytest.fixture
async def client(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Authorization": "Bearer test"}
    limits = httpx.Limits(max_connections=HUNG_CALLS + 10)
    async with httpx.AsyncClient(base_url=service.url, headers=headers, timeout=30, limits=limits) as made:
        yield made


async def code_of(client: httpx.AsyncClient, call: dict[str, Any]) -> str | None:
    reply = (await client.post("/rpc", json=call)).json()
    return None if reply["ok"] else str(reply["error"]["code"])


async def test_a_hung_firestore_costs_its_own_namespace(client: httpx.AsyncClient, firestore: FirestoreProcess) -> None:
    assert await code_of(client, WRITE) is None
    firestore.pause()
    try:
        calls = [asyncio.create_task(code_of(client, READ)) for _ in range(HUNG_CALLS)]
        assert await code_of(client, {"method": "REGISTRY.get_user", "args": ["demo"], "timeout_ms": 700}) is None
        assert (await client.get("/healthz")).status_code == 200
        assert not all(call.done() for call in calls), "the neighbours answered while these hung"
        assert {await call for call in calls} <= {"DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"}
        assert await code_of(client, WRITE) == "DEADLINE_EXCEEDED"
    finally:
        firestore.resume()
    async with asyncio.timeout(30):
        while await code_of(client, READ) is not None:
            pass
