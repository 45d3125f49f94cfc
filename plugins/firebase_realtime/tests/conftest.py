"""The service on a real Realtime Database, the embedded one; and that database past the code under test."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, aclosing
from typing import Any, TypeAlias, cast

import httpx
import pytest
from blockbuster import blockbuster_ctx

from callboard import Event, Listener, Thread, User
from callboard.host import Host
from callboard.settings import Settings, load
from callboard.telemetry import Telemetry
from callboard_firebase_realtime import ChatListener, FirebaseRealtime, MessageListener
from callboard_local import RealtimeProcess
from callboard_local.session_loop import anyio_backend as anyio_backend
from callboard_local.session_loop import grpc_stays as grpc_stays
from callboard_local.session_loop import one_event_loop as one_event_loop

Next: TypeAlias = Callable[[], Awaitable[Event]]
"""The listener's next event; a test that waits for one in vain fails there."""


class Tree:
    """The database as it lies there, by a client of its own: values, never through the code under test."""

    def __init__(self, client: httpx.AsyncClient, namespace: str) -> None:
        self._client = client
        self._namespace = {"ns": namespace}

    async def get(self, path: str = "") -> Any:
        return json.loads(await self.text(path))

    async def text(self, path: str = "") -> str:
        return (await self._ask("GET", path)).text

    async def put(self, path: str, value: Any) -> None:
        await self._ask("PUT", path, content=json.dumps(value))

    async def patch(self, path: str, values: dict[str, Any]) -> None:
        await self._ask("PATCH", path, content=json.dumps(values))

    async def _ask(self, method: str, path: str, **body: Any) -> httpx.Response:
        answer = await self._client.request(method, f"/{path}.json", params=self._namespace, **body)
        answer.raise_for_status()
        return answer


@pytest.fixture
async def tree(realtime_server: RealtimeProcess, realtime_namespace: str) -> AsyncIterator[Tree]:
    async with httpx.AsyncClient(base_url=f"http://{realtime_server.address}", timeout=20) as client:
        yield Tree(client, realtime_namespace)


@pytest.fixture
def environ(realtime_server: RealtimeProcess, realtime_namespace: str) -> dict[str, str]:
    """Where the database of this test is."""
    return {
        "FIREBASE_DATABASE_EMULATOR_HOST": realtime_server.address,
        "FIREBASE_REALTIME_DB_URL": realtime_server.url_of(realtime_namespace),
    }


@pytest.fixture
async def make_service() -> AsyncIterator[Callable[[dict[str, str]], FirebaseRealtime]]:
    """Makes services, not open yet, in an environment of these variables; what they open is closed after the test."""
    async with AsyncExitStack() as resources:

        def make(environ: dict[str, str]) -> FirebaseRealtime:
            telemetry = Telemetry(replica="test")
            unused: Any = None
            service = FirebaseRealtime()
            service.host = Host(
                settings=load(Settings, {}),
                environ=environ,
                telemetry=telemetry,
                connections=unused,
                bus=unused,
                presence=unused,
                listeners=unused,
                tickets=unused,
                resources=resources,
            )
            service.log = telemetry.log
            return service

        yield make


@pytest.fixture
async def service(
    make_service: Callable[[dict[str, str]], FirebaseRealtime], environ: dict[str, str]
) -> FirebaseRealtime:
    """The open service on an empty database."""
    service = make_service(environ)
    await service.open()
    return service


@pytest.fixture(autouse=True)
def no_blocking_calls() -> Iterator[None]:
    """A blocking call on the event loop, made by our own packages, fails the test that makes it."""
    with blockbuster_ctx(["callboard", "callboard_firebase", "callboard_firebase_realtime"]):
        yield


def messages_of(service: FirebaseRealtime) -> MessageListener:
    listener = MessageListener()
    listener.service = service
    return listener


def chat_of(service: FirebaseRealtime, thread: Thread) -> ChatListener:
    listener = ChatListener()
    listener.service, listener.thread = service, thread
    return listener


@pytest.fixture
async def follow() -> AsyncIterator[Callable[[Listener[Any], User], Awaitable[Next]]]:
    """Starts a listener for a user; `await next()` is its next event."""
    async with AsyncExitStack() as stack:

        async def start(listener: Listener[Any], user: User) -> Next:
            changes = cast("AsyncGenerator[Event, None]", listener.changes(user))
            await stack.enter_async_context(aclosing(changes))
            return lambda: asyncio.wait_for(anext(changes), 20)

        yield start
