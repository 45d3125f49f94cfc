"""For tests of plugins: a whole service with just the plugins under test.

    async with running(callboard_vector_db, environ=environ) as service:
        matches = await service.call("VECTOR_DB.search_vectors", [0.1, 0.2], top_k=3, as_user="demo")

    async with serving(callboard_vector_db, environ=environ) as service:   # the same, on a port of its own
        httpx.post(f"{service.url}/rpc", …)

    async with service.opened("demo", "acme", "-N1") as channel:            # a chat thread; its listeners run
        assert (await channel.next("chat.sync")).payload["count"] == 0

`environ` names the back ends, e.g. from callboard-local's fixtures; the token is `test` when none is given.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from msgspec import Raw

from callboard.app import Callboard
from callboard.credentials import Credential
from callboard.messages import Call, ErrorBody, Event, encode
from callboard.server import Server, listen
from callboard.service import Thread, ThreadMode
from callboard.settings import Settings, load
from callboard.telemetry import Telemetry

TOKEN = "test"  # noqa: S105 - of services that live as long as a test


class CallFailed(AssertionError):
    """A call was answered with an error, which the test did not expect: `code`, `message`, `details`."""

    def __init__(self, method: str, error: ErrorBody) -> None:
        super().__init__(f"{method}: {error.code}: {error.message}")
        self.code, self.message, self.details = error.code, error.message, error.details


class Service:
    """A running service, as a test sees it."""

    def __init__(self, callboard: Callboard, url: str | None = None) -> None:
        self.callboard = callboard
        self._url = url

    @property
    def url(self) -> str:
        """`http://127.0.0.1:port`, when it is being served."""
        assert self._url is not None, "use serving() for a service with an address"  # noqa: S101 - a test's mistake
        return self._url

    async def call(
        self, method: str, /, *args: Any, as_user: str | None = None, with_key: str | None = None, **kwargs: Any
    ) -> Any:
        """Call through the router, arguments and result as JSON; CallFailed for an error.

        `as_user` and `with_key` are the envelope's `user_id` and `idempotency_key`; all else is the method's.
        """
        call = Call(
            method=method, args=Raw(encode(args)), kwargs=Raw(encode(kwargs)), user_id=as_user,
            idempotency_key=with_key,
        )  # fmt: skip
        answer = await self.callboard.router.call(call, Credential("test"))
        if isinstance(answer.reply.error, ErrorBody):
            raise CallFailed(method, answer.reply.error)
        return msgspec.json.decode(answer.reply.data)  # type: ignore[arg-type]

    @asynccontextmanager
    async def subscribed(self, channel: str) -> AsyncIterator[Subscription]:
        """Everything published on one channel, from now on, as a consumer that reads Redis gets it."""
        async with self.callboard.connections.commands.pubsub() as pubsub:
            await pubsub.subscribe(channel)
            confirmed = await pubsub.get_message(timeout=5)
            assert confirmed is not None, f"Redis did not confirm the subscription to {channel}"  # noqa: S101
            yield Subscription(pubsub)

    @asynccontextmanager
    async def opened(
        self, uid: str, space_code: str, thread_key: str, mode: ThreadMode = "auto"
    ) -> AsyncIterator[Subscription]:
        """A chat thread that the user has open, as by a WebSocket, and everything published on its channel."""
        thread = Thread(space_code, thread_key, mode)
        async with self.subscribed(self.callboard.bus.channel_of("chat.sync", uid, thread.place)) as channel:
            with self.callboard.listeners.keeping_open(uid, thread):
                yield channel


class Subscription:
    """The events of one channel, in order; `seen` keeps them all."""

    def __init__(self, pubsub: Any) -> None:
        self._pubsub = pubsub
        self.seen: list[Event] = []

    async def next(self, type: str | None = None, *, within_s: float = 10) -> Event:  # noqa: A002 - the field's name
        """The next event, or the next of this type; TimeoutError when none comes."""
        async with asyncio.timeout(within_s):
            while True:
                message = await self._pubsub.get_message(ignore_subscribe_messages=True, timeout=None)
                if message is None:
                    continue
                event = msgspec.json.decode(message["data"], type=Event)
                self.seen.append(event)
                if type in (None, event.type):
                    return event


@asynccontextmanager
async def running(
    *plugins: Any, environ: Mapping[str, str], telemetry: Telemetry | None = None
) -> AsyncIterator[Service]:
    """A service with these plugins, started and, at the end, stopped."""
    callboard = _build(plugins, environ, telemetry)
    async with callboard.asgi.router.lifespan_context(callboard.asgi):
        yield Service(callboard)


@asynccontextmanager
async def serving(
    *plugins: Any, environ: Mapping[str, str], telemetry: Telemetry | None = None
) -> AsyncIterator[Service]:
    """`running`, behind the real server on a free port of the loopback."""
    callboard = _build(plugins, environ, telemetry)
    server = Server(callboard, own_process=False)
    listener = listen("127.0.0.1", 0)
    task = asyncio.create_task(server._serve([listener]), name="server")  # serve() would take the signals
    try:
        async with asyncio.timeout(30):
            while callboard.lifecycle.state == "starting" and not task.done():  # noqa: ASYNC110 - a start-up
                await asyncio.sleep(0.01)
        if task.done():
            raise RuntimeError("the service did not start") from task.exception()
        yield Service(callboard, "http://{}:{}".format(*listener.getsockname()))
    finally:
        server.should_exit = True
        await task


def _build(plugins: tuple[Any, ...], environ: Mapping[str, str], telemetry: Telemetry | None) -> Callboard:
    environ = {"LISTENERS_SERVICE_TOKEN": TOKEN, "LISTENERS_ALLOW_EMULATORS": "true", **environ}
    return Callboard(load(Settings, environ), plugins, environ=environ, telemetry=telemetry)
