"""All back ends together, and the sample data."""

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import firebase_admin
import httpx
import pytest
import redis.asyncio
from firebase_admin import db
from google.cloud.firestore import AsyncClient

from callboard_local import Backends, FirestoreProcess, PortInUseError, RealtimeProcess
from callboard_local.realtime_seed import seed_realtime
from callboard_local.seed import seed
from callboard_local.server import free_port, is_free

pytestmark = pytest.mark.anyio

INVOICE_FIELDS = {
    "invoiceReference", "recipient", "invoiceDescription", "totalAmountDueVATExcluded", "totalAmountDueVATIncluded",
    "VATAmount", "recipientAddress", "dueDate", "sender", "invoiceDate", "currency", "VATPercentages",
    "sender_country", "account_number", "account_name",
}  # fmt: skip


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", free_port())) as taken:
        yield taken.getsockname()[1]


async def test_they_start_on_fixed_ports_tell_the_environment_and_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    base = free_port()
    monkeypatch.setenv("STRIPE_CANCEL_URL", "http://localhost:3000/cart")
    monkeypatch.delenv("STRIPE_SUCCESS_URL", raising=False)
    before = dict(os.environ)
    async with Backends(base, project="p", seed=False) as backends:
        assert backends.environ == {
            "LISTENERS_REDIS_HOST": "127.0.0.1",
            "LISTENERS_REDIS_PORT": str(base + 1),
            "LISTENERS_REDIS_TLS": "false",
            "FIRESTORE_EMULATOR_HOST": f"127.0.0.1:{base + 2}",
            "FIREBASE_DATABASE_EMULATOR_HOST": f"127.0.0.1:{base + 3}",
            "FIREBASE_REALTIME_DB_URL": f"http://127.0.0.1:{base + 3}?ns=p",
            "GOOGLE_PROJECT_ID": "p",
            "STRIPE_SECRET_KEY": "sk_test_callboard_local",
            "STRIPE_WEBHOOK_SECRET": "whsec_callboard_local",
            "STRIPE_API_BASE": f"http://127.0.0.1:{base + 4}",
            "STRIPE_SUCCESS_URL": f"http://127.0.0.1:{base + 4}/paid",
            "STRIPE_CANCEL_URL": "http://localhost:3000/cart",
        }
        async with redis.asyncio.from_url(backends.valkey.url) as client:
            assert await client.ping()
        assert not is_free(base + 2)
        assert not is_free(base + 3)
        assert not is_free(base + 4)
    for offset in (1, 2, 3, 4):
        assert is_free(base + offset)
    assert dict(os.environ) == before


@pytest.mark.parametrize(("offset", "name"), [(1, "Valkey"), (2, "Firestore"), (3, "Realtime Database"), (4, "Stripe")])
async def test_a_taken_port_names_the_back_end_and_stops_the_others(taken_port: int, offset: int, name: str) -> None:
    base = taken_port - offset
    with pytest.raises(PortInUseError, match=f"{name} cannot listen on 127.0.0.1:{taken_port}"):
        await Backends(base, seed=False).__aenter__()
    for other in {1, 2, 3, 4} - {offset}:
        assert is_free(base + other)


async def test_a_death_is_told(caplog: pytest.LogCaptureFixture) -> None:
    async with Backends(seed=False) as backends:
        died = asyncio.create_task(backends.died())
        await backends.valkey.kill()
        assert await died == "Valkey"


async def test_a_cancelled_start_leaves_nothing_behind() -> None:
    base = free_port()
    starting = asyncio.create_task(Backends(base, seed=False).__aenter__())
    while is_free(base + 1):
        await asyncio.sleep(0.005)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    for offset in (1, 2, 3):
        assert is_free(base + offset)


async def test_the_sample_data(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Backends() as backends:
        monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", backends.firestore.address)
        client = AsyncClient(project="demo")
        home = client.document("clients/demo")
        notifications = [snapshot.to_dict() or {} async for snapshot in home.collection("notifications").stream()]
        assert {item["read"] for item in notifications} == {True, False}
        job = (await home.collection("task_manager").document("job456").get()).to_dict() or {}
        assert set(job["document"]["initial_data"]) == INVOICE_FIELDS
        assert all(isinstance(count, int) for count in job["APBookeeper_step_status"].values())
        balance = (await home.collection("billing").document("current_balance").get()).to_dict() or {}
        assert balance["current_balance_minor"] == 3750
        await client._firestore_api.transport.close()
        app = firebase_admin.initialize_app(
            options={"databaseURL": backends.environ["FIREBASE_REALTIME_DB_URL"]}, name="sample data"
        )
        await asyncio.to_thread(look_at_the_sample_chat, app)
        firebase_admin.delete_app(app)


def look_at_the_sample_chat(app: firebase_admin.App) -> None:
    thread = db.reference("demo-bakery/chats/invoice-42", app).get()
    assert thread["thread_name"] == "Invoice 42"
    assert list(thread["messages"]) == sorted(thread["messages"])
    for message in thread["messages"].values():
        assert set(message) == {"content", "sender_id", "timestamp", "message_type", "read"}
        assert message["timestamp"].endswith("Z"), "texts sort by time when all have one form"
    (direct,) = db.reference("clients/demo/direct_message_notif", app).get().values()
    assert direct["collection_id"] == "demo-bakery"


async def test_data_survives_in_two_files(tmp_path: Path) -> None:
    file = tmp_path / "kept.db"
    for _ in range(2):
        async with Backends(seed=False, data=file) as backends, httpx.AsyncClient() as client:
            url = f"http://{backends.realtime.address}/n.json"
            count = (await client.get(url)).json()
            await client.put(url, json={".sv": {"increment": 1}})
    assert count == 1
    assert file.exists()
    assert (tmp_path / "realtime-kept.db").exists()


async def test_a_sample_chat_is_written_once_and_never_over_yours(
    realtime_server: RealtimeProcess, rest: httpx.AsyncClient, realtime_namespace: str
) -> None:
    await rest.put("/demo-bakery/chats/invoice-42.json", json={"thread_name": "mine"})
    address = realtime_server.host, realtime_server.port
    assert await asyncio.to_thread(seed_realtime, *address, realtime_namespace) == 1
    assert await asyncio.to_thread(seed_realtime, *address, realtime_namespace) == 0
    assert (await rest.get("/demo-bakery/chats/invoice-42.json")).json() == {"thread_name": "mine"}
    with pytest.raises(RuntimeError, match="refused with status 400"):
        await asyncio.to_thread(seed_realtime, *address, "no such name")


async def test_sample_data_is_written_once_and_never_over_yours(
    firestore_server: FirestoreProcess, firestore_project: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", firestore_server.address)
    client = AsyncClient(project=firestore_project)
    mine = client.document("clients/demo/task_manager/job456")
    await mine.set({"status": "mine"})
    written = await seed(client)
    assert written > 0
    assert await seed(client) == 0
    assert (await mine.get()).to_dict() == {"status": "mine"}
    await client._firestore_api.transport.close()
