"""Threads opened by a call, for consumers that read Redis directly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

import callboard_firebase_realtime
from callboard.testing import CallFailed, Service, running
from callboard_local import RealtimeProcess, ValkeyServer

pytestmark = pytest.mark.anyio


@pytest.fixture
async def running_service(
    environ: dict[str, str], valkey_server: ValkeyServer, realtime_namespace: str
) -> AsyncIterator[Service]:
    redis = {
        "LISTENERS_REDIS_HOST": "127.0.0.1",
        "LISTENERS_REDIS_PORT": str(valkey_server.port),
        "LISTENERS_CHAT_CHANNEL_PREFIX": f"{realtime_namespace}:chat:",
        "LISTENERS_TTL_SECONDS": "120",
    }
    async with running(callboard_firebase_realtime, environ={**environ, **redis}) as service:
        yield service


async def streams_until(server: RealtimeProcess, namespace: str, count: int) -> None:
    """So many event streams are open on the space. Others are: users of other tests may still be online."""
    while (await server.control("streams", ns=namespace, path="/acme"))["streams"] != count:
        await asyncio.sleep(0.1)


async def test_a_watched_thread_is_told_of(
    running_service: Service,
    realtime_server: RealtimeProcess,
    realtime_namespace: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    user, place = f"user-{realtime_namespace}", ("acme", "t1")
    channel = f"{realtime_namespace}:chat:{user}:acme:t1"
    async with running_service.subscribed(channel) as events:
        watched = await running_service.call("FIREBASE_REALTIME.watch_thread", user, *place, "chats")
        assert watched == {
            "user_id": user,
            "space_code": "acme",
            "thread_key": "t1",
            "mode": "chats",
            "for_seconds": 120,
            "channel": channel,
        }
        assert (await events.next()).type == "chat.sync"

        # A heartbeat begins nothing anew: the next event is the message.
        assert await running_service.call("FIREBASE_REALTIME.watch_thread", user, *place, "chats") == watched
        sent = await running_service.call(
            "FIREBASE_REALTIME.send_realtime_message_structured", user, *place, "hello", mode="chats"
        )
        message = await events.next()
        assert [one["id"] for one in message.payload["raw_messages"]] == [sent]

        # Let go, it is listened to for no longer than its grace.
        monkeypatch.setattr(running_service.callboard.listeners._attendance, "_grace_s", 0)
        await streams_until(realtime_server, realtime_namespace, 1)
        assert await running_service.call("FIREBASE_REALTIME.unwatch_thread", user, *place) == {
            "user_id": user,
            "space_code": "acme",
            "thread_key": "t1",
        }
        await streams_until(realtime_server, realtime_namespace, 0)


async def test_letting_go_a_thread_that_nobody_watches(running_service: Service) -> None:
    answer = await running_service.call("FIREBASE_REALTIME.unwatch_thread", "ada", "acme", "nothing")
    assert answer["thread_key"] == "nothing"


@pytest.mark.parametrize(
    "args", [["ada", "acme", "a.b"], ["ada", "clients", "t1"], ["ada", "acme", ""], ["a b", "acme", "t1"]]
)
async def test_threads_that_cannot_be(running_service: Service, args: list[str]) -> None:
    for method in ("watch_thread", "unwatch_thread"):
        with pytest.raises(CallFailed) as failed:
            await running_service.call(f"FIREBASE_REALTIME.{method}", *args)
        assert failed.value.code == "INVALID_ARGS"
