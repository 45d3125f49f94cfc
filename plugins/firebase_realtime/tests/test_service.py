"""The namespace in a whole service: over the router, with a real Redis, and its listeners run by the fleet."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import callboard_firebase_realtime
from callboard.errors import Unauthenticated
from callboard.testing import TOKEN, CallFailed, Service, running, serving
from callboard_firebase_realtime import FirebaseRealtime
from callboard_local import ValkeyServer

from .conftest import Tree

pytestmark = pytest.mark.anyio

SIGNATURES = [
    "create_chat(user_id, space_code, thread_name, mode='chats')",
    "delete_chat(user_id, space_code, thread_key, mode='chats')",
    "delete_direct_message(user_id, message_id)",
    "delete_space(space_id)",
    "erase_chat(user_id, space_code, thread_key, mode='chats')",
    "get_all_threads(space_code, mode='chats', limit=None, after=None)",
    "get_channel_messages(space_code, thread_key, limit=50, mode='job_chats')",
    "get_unread_direct_messages(user_id, companies=None)",
    "mark_chat_read(space_code, thread_key, message_ids, mode)",
    "send_direct_message(user_id, recipient_id, message_data)",
    (
        "send_realtime_message_structured(user_id, space_code, thread_key, text=None, message_type='MESSAGE_PINNOKIO', "
        "message_data=None, mode='job_chats')"
    ),
    "send_speeddial_action(user_id, space_code, thread_key, action, message_data=None, mode='job_chats')",
    "send_tools_list(user_id, space_code, thread_key, tools, message_data=None, mode='job_chats')",
    "test_connection()",
    "unwatch_thread(user_id, space_code, thread_key)",
    "watch_thread(user_id, space_code, thread_key, mode='auto')",
]
PLAIN_WRITES = {
    "create_chat", "send_direct_message", "send_realtime_message_structured", "send_speeddial_action",
    "send_tools_list",
}  # fmt: skip
READS = {
    "get_all_threads", "get_channel_messages", "get_unread_direct_messages", "test_connection",
}  # fmt: skip


def test_methods_are_those_of_the_contract() -> None:
    found = []
    for name, function, declared in FirebaseRealtime().methods():
        parameters = [
            one.name if one.default is inspect.Parameter.empty else f"{one.name}={one.default!r}"
            for one in inspect.signature(function).parameters.values()
        ]
        found.append(f"{name}({', '.join(parameters)})")
        assert declared.effect == ("read" if name in READS else "write"), name
        assert declared.retry_safe == (name not in READS | PLAIN_WRITES), name
        assert declared.keyed == (name not in {"watch_thread", "unwatch_thread"}), name
        assert function.__doc__, name
    assert found == SIGNATURES


def test_the_readme_tells_of_every_method() -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    for signature in SIGNATURES:
        name = signature.partition("(")[0]
        effect = "read" if name in READS else "write" if name in PLAIN_WRITES else "safe write"
        assert f"| `{signature.replace(chr(39), chr(34))}` | {effect} |" in readme


@pytest.fixture
def environ(environ: dict[str, str], valkey_server: ValkeyServer, realtime_namespace: str) -> dict[str, str]:
    return {
        **environ,
        "LISTENERS_REDIS_HOST": "127.0.0.1",
        "LISTENERS_REDIS_PORT": str(valkey_server.port),
        "LISTENERS_CHANNEL_PREFIX": f"{realtime_namespace}:user:",
        "LISTENERS_MSG_CHANNEL_PREFIX": f"{realtime_namespace}:msg:",
        "LISTENERS_CHAT_CHANNEL_PREFIX": f"{realtime_namespace}:chat:",
    }


@pytest.fixture
def user(realtime_namespace: str) -> str:
    """A user of this test's own: leases and presence are shared by all that use this Redis."""
    return f"user-{realtime_namespace}"


@pytest.fixture
async def running_service(environ: dict[str, str]) -> AsyncIterator[Service]:
    async with running(callboard_firebase_realtime, environ=environ) as service:
        yield service


async def call(service: Service, name: str, *args: Any, **more: Any) -> Any:
    return await service.call(f"FIREBASE_REALTIME.{name}", *args, as_user="ada", **more)


async def test_arguments_of_the_wrong_type(running_service: Service, tree: Tree) -> None:
    for name, args in (
        ("create_chat", ["ada", "acme", ""]),
        ("create_chat", ["ada", "acme", "x" * 513]),
        ("create_chat", ["ada", "acme", "x", "auto"]),
        ("create_chat", ["ada", "acme", 3]),
        ("erase_chat", ["ada", "acme", "t1", "rooms"]),
        ("get_all_threads", ["acme", "chats", 0]),
        ("get_all_threads", ["acme", "chats", 1_001]),
        ("get_channel_messages", ["acme", "t1", 0]),
        ("get_channel_messages", ["acme", "t1", 1_001]),
        ("get_channel_messages", ["acme", "t1", "50"]),
        ("mark_chat_read", ["acme", "t1", "m1", "chats"]),
        ("mark_chat_read", ["acme", "t1", ["m1"]]),
        ("mark_chat_read", ["acme", "t1", ["m1"] * 501, "chats"]),
        ("send_realtime_message_structured", ["ada", "acme", "t1", "x", "SHOUT"]),
        ("send_realtime_message_structured", ["ada", "acme", "t1", {"text": "x"}]),
        ("send_realtime_message_structured", ["ada", "acme", "t1", "x", "CARD", []]),
        ("send_speeddial_action", ["ada", "acme", "t1", None]),
        ("send_tools_list", ["ada", "acme", "t1", "search"]),
        ("send_direct_message", ["ada", "charles", "hello"]),
        ("get_unread_direct_messages", ["ada", "acme"]),
        ("delete_space", [None]),
        ("watch_thread", ["ada", "acme", "t1", "rooms"]),
    ):
        with pytest.raises(CallFailed) as failed:
            await call(running_service, name, *args)
        assert failed.value.code == "INVALID_ARGS", (name, args)
    assert await tree.get() is None


@pytest.mark.parametrize(
    ("method", "args"),
    [
        ("create_chat", ["ada", "acme", "Payroll"]),
        ("send_realtime_message_structured", ["ada", "acme", "t1", "once"]),
        ("send_speeddial_action", ["ada", "acme", "t1", "once"]),
        ("send_tools_list", ["ada", "acme", "t1", ["once"]]),
        ("send_direct_message", ["ada", "charles", {"status": "once"}]),
    ],
)
async def test_a_repeated_key_writes_once(running_service: Service, tree: Tree, method: str, args: list[Any]) -> None:
    first, again = await asyncio.gather(
        call(running_service, method, *args, with_key="k1"), call(running_service, method, *args, with_key="k1")
    )
    once = await tree.text()
    assert first == again == await call(running_service, method, *args, with_key="k1")
    assert await tree.text() == once

    # The control: without a key it is another call.
    assert await call(running_service, method, *args) != first
    assert await tree.text() != once


async def test_an_online_user_gets_a_sync_then_messages(
    running_service: Service, realtime_namespace: str, user: str
) -> None:
    await call(running_service, "send_direct_message", "charles", user, {"status": "old", "collection_id": "acme"})

    async with running_service.subscribed(f"{realtime_namespace}:msg:{user}") as events:
        await running_service.callboard.presence.register(user, "session1", authorized_companies_ids=["acme"])
        sync = await events.next("msg.sync")
        assert [item["message"] for item in sync.payload["messages"]] == ["Document - old"]
        assert sync.fence is not None

        await call(running_service, "send_direct_message", "charles", user, {"status": "x", "collection_id": "other"})
        sent = await call(
            running_service, "send_direct_message", "charles", user, {"status": "new", "collection_id": "acme"}
        )
        new = await events.next("msg.new")
        assert (new.payload["doc_id"], new.listener) == (sent, "firebase_realtime.messages")

    assert [event.type for event in events.seen] == ["msg.sync", "msg.new"]


async def test_messages_on_the_users_channel_too(environ: dict[str, str], realtime_namespace: str, user: str) -> None:
    both = {**environ, "LISTENERS_MSG_ON_USER_CHANNEL": "true"}
    async with (
        running(callboard_firebase_realtime, environ=both) as service,
        service.subscribed(f"{realtime_namespace}:msg:{user}") as messages,
        service.subscribed(f"{realtime_namespace}:user:{user}") as users,
    ):
        await service.callboard.presence.register(user, "session1")
        await messages.next("msg.sync")
        await call(service, "send_direct_message", "charles", user, {"status": "new"})
        new = await messages.next("msg.new")
        assert (await users.next("msg.sync")).id == messages.seen[0].id
        assert (await users.next("msg.new")).id == new.id


async def test_messages_are_on_the_users_channel_only_when_asked_for(
    running_service: Service, realtime_namespace: str, user: str
) -> None:
    """The control of the test before: without the setting the next event there is the one that we send ourselves."""
    async with (
        running_service.subscribed(f"{realtime_namespace}:msg:{user}") as messages,
        running_service.subscribed(f"{realtime_namespace}:user:{user}") as users,
    ):
        await running_service.callboard.presence.register(user, "session1")
        await messages.next("msg.sync")
        await running_service.callboard.host.background.progress(1, job_id="j1", uid=user)
        assert (await users.next()).type == "service.progress_update"


async def test_an_open_thread_gets_a_sync_then_messages(running_service: Service, user: str) -> None:
    created = await call(running_service, "create_chat", user, "acme", "Payroll")
    key = created["thread_key"]
    async with running_service.opened(user, "acme", key) as events:
        sync = await events.next()
        assert (sync.type, sync.payload["messages"], sync.payload["mode"]) == ("chat.sync", [], "chats")
        assert sync.listener == f"firebase_realtime.chat:acme:{key}"

        sent = await call(
            running_service, "send_realtime_message_structured", "charles", "acme", key, "hello", mode="chats"
        )
        new = await events.next()
        assert (new.type, new.payload["raw_messages"][0]["id"]) == ("chat.message", sent)
        assert await call(running_service, "mark_chat_read", "acme", key, [sent], "chats") == 1
        assert (await events.next()).payload["raw_messages"][0]["read"] is True


async def test_health_over_http(environ: dict[str, str]) -> None:
    async with serving(callboard_firebase_realtime, environ=environ) as service, httpx.AsyncClient() as http:
        healthz = await http.get(f"{service.url}/healthz/FIREBASE_REALTIME")
        debug = await http.get(f"{service.url}/debug", headers={"Authorization": f"Bearer {TOKEN}"})

    assert (healthz.status_code, healthz.json()["status"]) == (200, "ok")
    assert debug.status_code == 200
    external = debug.json()["external"]["realtime_database"]
    assert external["status"] == "ok"
    assert external["streams"].keys() >= {"streams", "connected", "backing_off", "reconnects"}


async def test_without_a_database_the_plugin_is_put_aside_and_says_why(environ: dict[str, str]) -> None:
    redis_alone = {name: value for name, value in environ.items() if name.startswith("LISTENERS_")}
    async with running(callboard_firebase_realtime, environ=redis_alone) as service:
        with pytest.raises(CallFailed) as failed:
            await call(service, "get_all_threads", "acme")
        assert failed.value.code == "UNAVAILABLE"
        [plugin] = service.callboard.plugins.all
        assert plugin.state == "quarantined"
        assert "no Realtime Database is configured" in (plugin.error or "")
        check = callboard_firebase_realtime.register_health_checks(service.callboard.host)["realtime_database"]
        assert await check() == {"status": "not configured"}


async def test_id_tokens_are_checked(environ: dict[str, str]) -> None:
    async with serving(callboard_firebase_realtime, environ={**environ, "GOOGLE_PROJECT_ID": "shop-of-ada"}) as service:
        assert service.callboard.websockets.verify_token is not None
        with pytest.raises(Unauthenticated, match="not valid"):
            await service.callboard.websockets.verify_token("a.b.c")
