"""Chat, whole: a screen that has a thread open, messages sent over RPC and by others, a reload, companies."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from support import Recorded
from websockets.asyncio.client import ClientConnection, connect

import callboard_firebase_realtime
import callboard_registry
from callboard.messages import new_id
from callboard.testing import Service, serving
from callboard_local import RealtimeProcess, ValkeyServer

pytestmark = pytest.mark.anyio

SPACE = "acme"


@pytest.fixture
def user() -> str:
    return f"user-{new_id()[:12]}"


@pytest.fixture
async def service(
    valkey_server: ValkeyServer, realtime_server: RealtimeProcess, realtime_namespace: str, recorded: Recorded
) -> AsyncIterator[Service]:
    environ = {
        "LISTENERS_REDIS_HOST": "127.0.0.1",
        "LISTENERS_REDIS_PORT": str(valkey_server.port),
        "FIREBASE_DATABASE_EMULATOR_HOST": realtime_server.address,
        "FIREBASE_REALTIME_DB_URL": realtime_server.url_of(realtime_namespace),
    }
    plugins = (callboard_firebase_realtime, callboard_registry)
    async with serving(*plugins, environ=environ, telemetry=recorded.telemetry) as running:
        yield running


@pytest.fixture
async def http(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Authorization": "Bearer test"}
    async with httpx.AsyncClient(base_url=service.url, headers=headers, timeout=30) as made:
        yield made


async def call(http: httpx.AsyncClient, method: str, *args: Any, **kwargs: Any) -> Any:
    body = {"method": method, "args": args, "kwargs": kwargs, "idempotency_key": new_id()}
    reply = (await http.post("/rpc", json=body)).json()
    assert reply["ok"], reply
    return reply["data"]


def screen(service: Service, user: str, thread: str | None = None) -> connect:
    named = f"&space_code={SPACE}&thread_key={thread}" if thread else ""
    url = f"{service.url.replace('http', 'ws')}/ws?uid={user}{named}"
    return connect(url, additional_headers={"Authorization": "Bearer test"})


async def frame(connection: ClientConnection, kind: str) -> dict[str, Any]:
    """The next event of this type."""
    async with asyncio.timeout(20):
        while True:
            event: dict[str, Any] = json.loads(await connection.recv())
            if event["type"] == kind:
                return event


async def syncs(connection: ClientConnection, *kinds: str) -> dict[str, Any]:
    """The payloads of the first frames by type: these types and no others. A listener that begins may repeat one."""
    found: dict[str, Any] = {}
    async with asyncio.timeout(20):
        while found.keys() != set(kinds):
            event = json.loads(await connection.recv())
            assert event["type"] in kinds
            found[event["type"]] = event["payload"]
    return found


async def listening(service: Service, user: str, name: str) -> dict[str, Any]:
    """The row of the user's listener `name` in /debug, once it listens."""
    async with asyncio.timeout(20):
        while True:
            for row in service.callboard.listeners.status():
                if (row["uid"], row["listener"], row["state"]) == (user, name, "listening"):
                    return row
            await asyncio.sleep(0.01)


async def test_a_message_sent_is_on_every_screen_that_has_the_thread_open(
    service: Service, http: httpx.AsyncClient, user: str
) -> None:
    chat = await call(http, "FIREBASE_REALTIME.create_chat", user, SPACE, "Payroll")
    thread, colleague = chat["thread_key"], f"{user}-2"
    async with screen(service, user, thread) as mine, screen(service, colleague, thread) as theirs:
        for one in (mine, theirs):
            first = await syncs(one, "msg.sync", "chat.sync")
            assert (first["chat.sync"]["mode"], first["chat.sync"]["messages"]) == ("chats", [])
        await listening(service, user, "firebase_realtime.chat")
        await listening(service, colleague, "firebase_realtime.chat")

        sent = await call(
            http, "FIREBASE_REALTIME.send_realtime_message_structured", user, SPACE, thread, "hello", mode="chats"
        )
        for one, uid in ((mine, user), (theirs, colleague)):
            event = await frame(one, "chat.message")
            assert (event["uid"], event["payload"]["thread_key"]) == (uid, thread)
            [message] = event["payload"]["raw_messages"]
            assert (message["id"], message["content"], message["sender_id"]) == (sent, "hello", user)

        # Read on one screen, read on all.
        assert await call(http, "FIREBASE_REALTIME.mark_chat_read", SPACE, thread, [sent], "chats") == 1
        for one in (mine, theirs):
            [message] = (await frame(one, "chat.message"))["payload"]["raw_messages"]
            assert (message["id"], message["read"]) == (sent, True)

        await call(http, "FIREBASE_REALTIME.delete_chat", user, SPACE, thread)
        for one in (mine, theirs):
            assert (await frame(one, "chat.sync"))["payload"]["messages"] == []


async def test_only_who_has_the_thread_open_hears_of_it(service: Service, http: httpx.AsyncClient, user: str) -> None:
    async with screen(service, user, "t1") as opened, screen(service, user) as other:
        await syncs(opened, "msg.sync", "chat.sync")
        await syncs(other, "msg.sync")
        await listening(service, user, "firebase_realtime.chat")
        await listening(service, user, "firebase_realtime.messages")

        await call(http, "FIREBASE_REALTIME.send_realtime_message_structured", user, SPACE, "t1", "hello")
        assert (await frame(opened, "chat.message"))["payload"]["mode"] == "job_chats"
        sent = await call(http, "FIREBASE_REALTIME.send_direct_message", "charles", user, {"status": "mark"})
        async with asyncio.timeout(20):
            kinds = [json.loads(await other.recv())]
            while kinds[-1]["type"] != "msg.new":
                kinds.append(json.loads(await other.recv()))
        assert kinds[-1]["payload"]["doc_id"] == sent
        assert not {event["type"] for event in kinds} & {"chat.message", "chat.sync"}


async def test_a_reload_finds_everything_and_tears_nothing_down(
    service: Service, http: httpx.AsyncClient, user: str
) -> None:
    chat = await call(http, "FIREBASE_REALTIME.create_chat", user, SPACE, "Payroll")
    thread = chat["thread_key"]
    send = "FIREBASE_REALTIME.send_realtime_message_structured"
    async with screen(service, user, thread) as before:
        await syncs(before, "msg.sync", "chat.sync")
        listener = await listening(service, user, "firebase_realtime.chat")
        first = await call(http, send, user, SPACE, thread, "before", mode="chats")
        await frame(before, "chat.message")

    second = await call(http, send, user, SPACE, thread, "while away", mode="chats")
    direct = await call(http, "FIREBASE_REALTIME.send_direct_message", "charles", user, {"status": "x"})

    async with screen(service, user, thread) as after:
        found = await syncs(after, "msg.sync", "chat.sync")
        assert [message["id"] for message in found["chat.sync"]["messages"]] == [first, second]
        assert [item["doc_id"] for item in found["msg.sync"]["messages"]] == [direct]
        same = await listening(service, user, "firebase_realtime.chat")
        assert (same["since"], same["fence"]) == (listener["since"], listener["fence"])

        third = await call(http, send, user, SPACE, thread, "after", mode="chats")
        while True:  # the one sent while away may be told again: a delta older than no sync's time
            event = await frame(after, "chat.message")
            ids = [message["id"] for message in event["payload"]["raw_messages"]]
            if ids == [third]:
                break
            assert ids == [second]


async def test_a_user_hears_of_their_companies_alone(service: Service, http: httpx.AsyncClient, user: str) -> None:
    await call(http, "REGISTRY.register_user", user, f"session-{user}", authorized_companies_ids=["acme"])
    send = "FIREBASE_REALTIME.send_direct_message"
    ours = await call(http, send, "charles", user, {"status": "x", "collection_id": "acme"})
    await call(http, send, "charles", user, {"status": "x", "collection_id": "other"})

    async with screen(service, user) as connection:
        found = await syncs(connection, "msg.sync")
        assert [item["doc_id"] for item in found["msg.sync"]["messages"]] == [ours]
        assert found["msg.sync"]["count"] == 1
        await listening(service, user, "firebase_realtime.messages")

        await call(http, send, "charles", user, {"status": "y", "collection_id": "other"})
        new = await call(http, send, "charles", user, {"status": "y", "collection_id": "acme"})
        assert (await frame(connection, "msg.new"))["payload"]["doc_id"] == new


async def test_the_listeners_of_a_thread_are_known_to_the_registry(
    service: Service, http: httpx.AsyncClient, user: str
) -> None:
    status = ("REGISTRY.check_listener_status", user, "chat", SPACE, "t1")
    assert (await call(http, *status))["active"] is False
    async with screen(service, user, "t1") as connection:
        await frame(connection, "chat.sync")
        await listening(service, user, "firebase_realtime.chat")
        assert (await call(http, *status))["active"] is True
