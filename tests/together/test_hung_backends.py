"""A back end that hangs costs its own namespace, within the deadline of each call, and nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

import callboard_firebase_management
import callboard_firebase_realtime
import callboard_registry
from callboard.testing import Service, serving
from callboard_local import FirestoreProcess, RealtimeProcess, StripeProcess, ValkeyServer
from callboard_local.server import ServerProcess

pytestmark = pytest.mark.anyio
PLUGINS = (callboard_firebase_management, callboard_firebase_realtime, callboard_registry)
HUNG_CALLS = 200
"""More than a namespace has slots for, and more than may wait for one."""
HANGS_MS, ANSWERS_MS = 3_000, 30_000
"""The deadlines of the calls that hang, which must not be over before the neighbours were asked, and of the others."""


def call(method: str, *args: Any) -> dict[str, Any]:
    return {"method": method, "args": args, "timeout_ms": ANSWERS_MS}


NEIGHBOUR = call("REGISTRY.get_user", "demo")
FIRESTORE = call("FIREBASE_MANAGEMENT.get_document", "clients/demo")
REALTIME = call("FIREBASE_REALTIME.get_channel_messages", "space", "thread")
STRIPE = call("FIREBASE_MANAGEMENT.retrieve_stripe_session", "cs_test_1")
WRITES = {
    "firestore": call("FIREBASE_MANAGEMENT.set_document", "clients/demo", {"x": 1}),
    "realtime": call("FIREBASE_REALTIME.create_chat", "demo", "space", "a thread"),
    "stripe": call("FIREBASE_MANAGEMENT.add_top_up", "clients/demo", {"currency": "CHF", "amount": 5}),
}


@pytest.fixture
async def backends() -> AsyncIterator[dict[str, ServerProcess]]:
    async with FirestoreProcess() as firestore, RealtimeProcess() as realtime, StripeProcess() as stripe:
        yield {"firestore": firestore, "realtime": realtime, "stripe": stripe}


@pytest.fixture
async def service(valkey_server: ValkeyServer, backends: dict[str, ServerProcess]) -> AsyncIterator[Service]:
    environ = {
        "LISTENERS_REDIS_HOST": "127.0.0.1",
        "LISTENERS_REDIS_PORT": str(valkey_server.port),
        "FIRESTORE_EMULATOR_HOST": backends["firestore"].address,
        "FIREBASE_DATABASE_EMULATOR_HOST": backends["realtime"].address,
        "GOOGLE_PROJECT_ID": "demo",
        "STRIPE_SECRET_KEY": "sk_test_hung",
        "STRIPE_API_BASE": f"http://{backends['stripe'].address}",
        "STRIPE_SUCCESS_URL": "https://app.example.com/done",
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


@pytest.mark.parametrize(
    ("hung", "read", "answer", "neighbours"),
    [
        ("firestore", FIRESTORE, None, [REALTIME, NEIGHBOUR]),
        ("realtime", REALTIME, None, [FIRESTORE, NEIGHBOUR]),
        ("stripe", STRIPE, "NOT_FOUND", [REALTIME, NEIGHBOUR]),
    ],
    ids=["Firestore", "Realtime Database", "Stripe"],
)
async def test_a_hung_back_end_costs_its_own_namespace(
    client: httpx.AsyncClient,
    backends: dict[str, ServerProcess],
    hung: str,
    read: dict[str, Any],
    answer: str | None,
    neighbours: list[dict[str, Any]],
) -> None:
    assert await code_of(client, WRITES[hung]) is None
    backends[hung].pause()
    try:
        hanging = {**read, "timeout_ms": HANGS_MS}
        calls = [asyncio.create_task(code_of(client, hanging)) for _ in range(HUNG_CALLS)]
        for neighbour in neighbours:
            assert await code_of(client, neighbour) is None
        assert (await client.get("/healthz")).status_code == 200
        assert not all(call.done() for call in calls), "the neighbours answered while these hung"
        assert {await call for call in calls} <= {"DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"}
        assert await code_of(client, {**WRITES[hung], "timeout_ms": HANGS_MS}) == "DEADLINE_EXCEEDED"
    finally:
        backends[hung].resume()
    async with asyncio.timeout(30):
        while await code_of(client, read) != answer:
            pass
