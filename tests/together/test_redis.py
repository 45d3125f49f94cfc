"""A whole service on every kind of Redis: a keyed call, events to sockets, presence, a chat thread, a drain."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from support import administering, at_one_node
from websockets.asyncio.client import connect

import callboard_registry
from callboard import Event, Listener, Service, User, hookimpl, listener, method
from callboard.testing import Service as Running
from callboard.testing import serving
from callboard_local import Deployment

pytestmark = pytest.mark.anyio


class Board(Service):
    namespace = "BOARD"
    channels = {"vector": "VECTOR_CHANNEL_PREFIX"}  # noqa: RUF012 - as plugins are documented
    pins = 0

    @method(effect="write")
    async def pin(self, uid: str) -> int:
        Board.pins += 1
        await self.context.publish(Event(type="vector.pinned", uid=uid, payload={"pins": Board.pins}))
        return Board.pins

    @listener(name="chat", per="thread")
    class Chat(Listener["Board"]):
        async def snapshot(self, user: User) -> list[Event]:
            return [Event(type="chat.sync", uid=user.uid, payload={"pins": Board.pins})]

        async def changes(self, user: User) -> AsyncIterator[Event]:
            await asyncio.Event().wait()
            yield Event(type="chat.message", uid=user.uid, payload={})


class Plugin:
    @hookimpl
    def register_services(self) -> Sequence[type[Service]]:
        return [Board]


@asynccontextmanager
async def screen(service: Running) -> AsyncIterator[list[dict[str, Any]]]:
    """What the user ann's page has received, with a thread open."""
    url = f"{service.url.replace('http', 'ws')}/ws?uid=ann&space_code=acme&thread_key=-N1"
    events: list[dict[str, Any]] = []

    async def read() -> None:
        async with connect(url, additional_headers={"Authorization": "Bearer test"}, proxy=None) as client:
            async for text in client:
                events.append(json.loads(text))  # noqa: PERF401 - as they come

    task = asyncio.create_task(read())
    try:
        yield events
    finally:
        task.cancel()
        await asyncio.wait([task])


async def eventually(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


def types(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]


async def test_a_whole_service(redis_deployment: Deployment) -> None:
    Board.pins = 0
    environ = dict(redis_deployment.environ)
    async with (
        serving(Plugin(), callboard_registry, environ={**environ, "LISTENERS_REPLICA": "one"}) as one,
        serving(Plugin(), callboard_registry, environ={**environ, "LISTENERS_REPLICA": "two"}) as two,
        httpx.AsyncClient(headers={"Authorization": "Bearer test"}, timeout=30) as http,
        at_one_node(redis_deployment) as node,
    ):
        async with screen(one) as first, screen(two) as second:
            await eventually(lambda: "chat.sync" in types(first) and "chat.sync" in types(second))
            owners = [each.callboard.listeners.active_count("chat") for each in (one, two)]
            await eventually(lambda: sum(each.callboard.listeners.active_count("chat") for each in (one, two)) == 1)
            assert sum(owners) <= 1

            answers: Any = node.pubsub()
            await answers.subscribe("redis:reply:s1")
            body = {"method": "BOARD.pin", "args": ["ann"], "user_id": "ann", "idempotency_key": "k"}
            replies = [
                (await http.post(f"{each.url}/rpc", json={**body, "reply_to": "redis:reply:s1"})).json()
                for each in (one, two)
            ]
            assert [reply["data"] for reply in replies] == [1, 1]
            await eventually(lambda: "vector.pinned" in types(first) and "vector.pinned" in types(second))
            assert types(first).count("vector.pinned") == types(second).count("vector.pinned") == 1
            while (answer := await answers.get_message(timeout=10))["type"] != "message":
                pass
            assert json.loads(answer["data"])["data"] == 1
            await answers.aclose()

            assert (await two.call("REGISTRY.get_user", "ann"))["status"] == "online"
            assert (await two.call("REGISTRY.online_users"))["users"] == ["ann"]
            assert (await one.call("REGISTRY.issue_ticket", "ann"))["ticket"]
        await eventually(lambda: not one.callboard.websockets.connections)
    async with administering(redis_deployment) as admin:
        owned = [key async for key in admin.scan_iter("callboard:lease:*") if await admin.hexists(key, "owner")]
        assert owned == []
