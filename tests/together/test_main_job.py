"""The service's main job, whole: a job written over RPC, a document changed elsewhere, and who hears of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from google.cloud.firestore import AsyncClient
from support import Recorded
from websockets.asyncio.client import ClientConnection, connect

import callboard_firebase_management
import callboard_registry
import callboard_workflow_listener
from callboard.messages import new_id
from callboard.testing import Service, Subscription, serving
from callboard_local import FirestoreProcess, ValkeyServer

pytestmark = pytest.mark.anyio
PLUGINS = (callboard_firebase_management, callboard_registry, callboard_workflow_listener)
BAD_BODIES = {
    "not JSON": b"{",
    "wrong types": b'{"method": 3}',
    "NaN": b'{"method": "FIREBASE_MANAGEMENT.set_document", "args": ["a/b", {"x": NaN}]}',
    "duplicate keys": b'{"method": "FIREBASE_MANAGEMENT.set_document", "args": ["a/b", {"x": 1, "x": 2}]}',
    "100,000 deep": b'{"method": "FIREBASE_MANAGEMENT.set_document", "args": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "invalid UTF-8": b'{"method": "FIREBASE_MANAGEMENT.set_document", "args": ["a/b", {"x": "\xff"}]}',
    "a lone surrogate": b'{"method": "FIREBASE_MANAGEMENT.set_document", "args": ["a/b", {"x": "\\ud800"}]}',
}
REFUSED_CALLS = {
    "METHOD_NOT_FOUND": ["FIREBASE_MANAGEMENT.nothing", "FIREBASE_MANAGEMENT.__init__", "FIREBASE_MANAGEMENT._upsert",
                         "FIREBASE_MANAGEMENT.client", "firebase_management.set_document"],
    "INVALID_ARGS": ["FIREBASE_MANAGEMENT.set_document"],
}  # fmt: skip


@pytest.fixture
def user() -> str:
    return f"user-{new_id()[:12]}"


@pytest.fixture
async def service(
    valkey_server: ValkeyServer, firestore_server: FirestoreProcess, firestore_project: str, recorded: Recorded
) -> AsyncIterator[Service]:
    environ = {
        "LISTENERS_REDIS_HOST": "127.0.0.1",
        "LISTENERS_REDIS_PORT": str(valkey_server.port),
        "FIRESTORE_EMULATOR_HOST": firestore_server.address,
        "GOOGLE_PROJECT_ID": firestore_project,
    }
    async with serving(*PLUGINS, environ=environ, telemetry=recorded.telemetry) as running:
        yield running


@pytest.fixture
async def client(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Authorization": "Bearer test", "Content-Type": "application/json"}
    async with httpx.AsyncClient(base_url=service.url, headers=headers, timeout=30) as made:
        yield made


@pytest.fixture
async def outside(
    firestore_server: FirestoreProcess, firestore_project: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[AsyncClient]:
    """Google's own client, beside the service."""
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", firestore_server.address)
    made = AsyncClient(project=firestore_project)
    yield made
    made.close()  # type: ignore[no-untyped-call]


def socket(service: Service, user: str) -> connect:
    url = service.url.replace("http", "ws")
    return connect(f"{url}/ws?uid={user}", additional_headers={"Authorization": "Bearer test"})


async def frame(connection: ClientConnection, kind: str) -> dict[str, Any]:
    async with asyncio.timeout(10):
        while True:
            event: dict[str, Any] = json.loads(await connection.recv())
            if event["type"] == kind:
                return event


async def attached(service: Service, user: str, channel: Subscription) -> None:
    """The user's listeners have told their first state on the channel."""
    waiting = {"notif.sync", "workflow.sync"}
    while waiting:
        waiting.discard((await channel.next()).type)


async def test_a_job_in_an_event_out(
    service: Service, client: httpx.AsyncClient, outside: AsyncClient, user: str
) -> None:
    job = outside.document(f"clients/{user}/task_manager/job456")
    invoice = {"invoiceReference": "INV-1", "currency": "EUR", "totalAmountDueVATExcluded": 1250.0}
    await job.set({"document": {"initial_data": invoice}, "APBookeeper_step_status": {"step_extract_data": 2}})

    async with service.subscribed(f"user:{user}") as channel, socket(service, user) as screen:
        first, second = [json.loads(await screen.recv()) for _ in range(2)]
        assert (first["type"], second["type"]) == ("notif.sync", "workflow.sync")
        assert (first["payload"]["notifications"], first["payload"]["count"]) == ([], 0)
        assert second["payload"] == {"job_id": "job456", "invoice": invoice, "steps": {"step_extract_data": 2}}
        await attached(service, user, channel)

        call = {
            "method": "FIREBASE_MANAGEMENT.add_or_update_job_by_job_id",
            "args": [f"clients/{user}/notifications", {"job_id": "abc", "status": "completed", "file_name": "a.pdf"}],
            "idempotency_key": new_id(),
        }
        answers = [await client.post("/rpc", json=call) for _ in range(2)]
        assert [answer.json()["data"] for answer in answers] == ["abc", "abc"]
        assert [answer.headers.get("idempotent-replayed") for answer in answers] == [None, "true"]

        updated, added = await channel.next("notif.job_updated"), await channel.next("notif.add")
        assert updated.payload["job_id"] == added.payload["job_id"] == "abc"
        assert added.payload["message"] == "a.pdf - completed"
        assert (await frame(screen, "notif.job_updated"))["id"] == updated.id
        assert (await frame(screen, "notif.add"))["id"] == added.id

        await job.update(
            {"document.initial_data.currency": "CHF", "APBookeeper_step_status.step_validate_data": 1, "other": 1}
        )
        changed = await frame(screen, "workflow.invoice_update")
        stepped = await frame(screen, "workflow.step_update")
        assert (changed["payload"], changed["job_id"]) == ({"invoice_changes": {"currency": "CHF"}}, "job456")
        assert stepped["payload"] == {"step_changes": {"APBookeeper_step_status": {"step_validate_data": 1}}}
        assert (await channel.next("workflow.step_update")).id == stepped["id"]
        assert sum(event.type == "notif.job_updated" for event in channel.seen) == 1


async def test_what_is_uploaded_and_restarted_is_heard(service: Service, outside: AsyncClient, user: str) -> None:
    async def call(name: str, *args: Any) -> Any:
        return await service.call(f"FIREBASE_MANAGEMENT.{name}", user, "job456", *args, as_user=user)

    older = outside.document(f"clients/{user}/task_manager/job456/document/initial_data")
    await older.set({"sender": "ACME"})
    await call("upload_invoice_step", {"step_extract_data": 2})

    async with service.subscribed(f"user:{user}") as channel:
        await service.callboard.presence.register(user, "session1")
        await attached(service, user, channel)

        assert await call("upload_document_to_task_job_id", {"currency": "CHF", "internal": 1}) is True
        changed = await channel.next("workflow.invoice_update")
        assert (changed.payload, changed.job_id) == ({"invoice_changes": {"currency": "CHF"}}, "job456")

        assert await call("upload_invoice_step", {"step_extract_data": {"$op": "increment", "by": 1}}) is True
        stepped = await channel.next("workflow.step_update")
        assert stepped.payload == {"step_changes": {"APBookeeper_step_status": {"step_extract_data": 3}}}
        read = await call("download_document_to_task_job_id"), await call("download_invoice_step")
        assert read == ({"currency": "CHF", "internal": 1, "sender": "ACME"}, {"step_extract_data": 3})

        assert await call("restart_job") is True
        changed, stepped = [await channel.next(f"workflow.{kind}_update") for kind in ("invoice", "step")]
        assert changed.payload == {"invoice_changes": {"currency": None}}
        assert stepped.payload == {"step_changes": {"APBookeeper_step_status": {"step_extract_data": None}}}

        assert await call("delete_items_by_job_id") == {"notifications": 0, "documents": 1}
        gone = await channel.next("workflow.sync")
        assert gone.payload == {"job_id": "job456", "invoice": {}, "steps": {}}


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES.keys())
async def test_a_bad_body_writes_nothing(
    client: httpx.AsyncClient, outside: AsyncClient, recorded: Recorded, body: bytes
) -> None:
    answer = await client.post("/rpc", content=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "INVALID_ARGS")
    await nothing_happened(answer, outside, recorded)


@pytest.mark.parametrize(("code", "method"), [(code, name) for code, names in REFUSED_CALLS.items() for name in names])
async def test_a_refused_call_writes_nothing(
    client: httpx.AsyncClient, outside: AsyncClient, recorded: Recorded, code: str, method: str
) -> None:
    answer = await client.post("/rpc", json={"method": method, "args": ["a/b", "no object"]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (200, code)
    await nothing_happened(answer, outside, recorded)


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"Authorization": ""}, 401, "UNAUTHENTICATED"),
        ({"Authorization": "Bearer wrong"}, 403, "PERMISSION_DENIED"),
        ({"Content-Type": "text/plain"}, 415, "INVALID_ARGS"),
    ],
)
async def test_a_refused_request_writes_nothing(
    client: httpx.AsyncClient, outside: AsyncClient, recorded: Recorded, headers: Any, status: int, code: str
) -> None:
    body = b'{"method": "FIREBASE_MANAGEMENT.set_document", "args": ["a/b", {"x": 1}]}'
    answer = await client.post("/rpc", content=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    await nothing_happened(answer, outside, recorded)


async def test_a_body_over_the_limit_writes_nothing(
    client: httpx.AsyncClient, outside: AsyncClient, recorded: Recorded
) -> None:
    call = {"method": "FIREBASE_MANAGEMENT.set_document", "args": ["a/b", {"x": "x" * 2_000_000}]}
    answer = await client.post("/rpc", json=call)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "INVALID_ARGS")
    await nothing_happened(answer, outside, recorded)


async def nothing_happened(answer: httpx.Response, outside: AsyncClient, recorded: Recorded) -> None:
    assert [collection.id async for collection in outside.collections()] == []
    assert answer.json().keys() == {"ok", "error", "trace_id"}
    assert "Traceback" not in answer.text + recorded.text
