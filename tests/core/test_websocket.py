"""`/ws` over real sockets, with the real bus and presence on a real Valkey."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope
from support import MakeSettings, Recorded
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from callboard.connections import Connections
from callboard.credentials import Credentials
from callboard.errors import Unauthenticated, Unavailable
from callboard.events.bus import Bus
from callboard.events.hub import Hub
from callboard.fleet.leases import Leases
from callboard.fleet.listeners import Listeners
from callboard.fleet.members import Members
from callboard.fleet.presence import Presence
from callboard.fleet.snapshots import Reading
from callboard.gateway.closing import CloseCode
from callboard.gateway.connection import Limits
from callboard.gateway.socket import TransportAccess
from callboard.gateway.tickets import Tickets
from callboard.gateway.websocket import WebSocketGateway
from callboard.identity import VerifiedToken
from callboard.lifecycle import Lifecycle
from callboard.messages import Event, encode, new_id, utc_now
from callboard.service import Listener, Service, Thread, User, listener
from callboard.settings import Settings
from callboard_local import ValkeyServer

pytestmark = pytest.mark.anyio

Serve = Callable[..., Awaitable[str]]
SERVICE = {"Authorization": "Bearer t0ken"}


@dataclass
class Source:
    """Where syncs come from: stands in for the listeners. `gate` holds a read up, `failures` are raised first."""

    reads: int = 0
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    reading: asyncio.Event = field(default_factory=asyncio.Event)
    failures: list[Exception] = field(default_factory=list)
    unreadable: int = 0
    copies: int = 1
    known: frozenset[str] | None = None
    payload: dict[str, Any] = field(default_factory=dict)
    as_of: str | None = None

    def __post_init__(self) -> None:
        self.gate.set()

    def keeping_open(self, uid: str, thread: Thread | None) -> AbstractContextManager[None]:
        return nullcontext()

    def segments(self, thread: Thread | None) -> dict[str, frozenset[str] | None]:
        return {"shop.items": self.known}

    async def read_one(self, uid: str, name: str, thread: Thread | None) -> Reading | None:
        self.reads += 1
        self.reading.set()
        await self.gate.wait()
        if self.failures:
            raise self.failures.pop(0)
        if self.unreadable:
            self.unreadable -= 1
            return None
        payload = {"count": self.reads, **self.payload}
        event = Event(type="notif.sync", uid=uid, id=new_id(), timestamp=utc_now(), payload=payload, as_of=self.as_of)
        return Reading(name, [event], [encode(event).decode()] * self.copies)


@dataclass
class Replica:
    gateway: WebSocketGateway
    hub: Hub
    bus: Bus
    presence: Presence
    tickets: Tickets
    source: Source
    lifecycle: Lifecycle
    recorded: Recorded
    address: str
    uid: str
    transports: list[Any]
    service: Any

    def url(self, **query: str) -> str:
        named = {"uid": self.uid, **query}
        return f"ws://{self.address}/ws?" + "&".join(f"{name}={value}" for name, value in named.items())

    @asynccontextmanager
    async def open(self, headers: dict[str, str] | None = SERVICE, **query: str) -> AsyncIterator[ClientConnection]:
        async with connect(self.url(**query), additional_headers=headers, proxy=None) as client:
            yield client

    @asynccontextmanager
    async def synced(self, **query: str) -> AsyncIterator[ClientConnection]:
        """A client that has received its first sync."""
        async with self.open(SERVICE, **query) as client:
            assert (await heard(client))["type"] == "notif.sync"
            yield client

    async def publish(self, n: int = 0, type: str = "notif.add", **fields: Any) -> None:  # noqa: A002
        await self.bus.publish(Event(type=type, uid=self.uid, payload={"n": n}, **fields))

    async def refused(self, headers: dict[str, str] | None = SERVICE, first: Any = None, url: str = "") -> CloseCode:
        """The code that a client gets instead of events."""
        async with connect(url or self.url(), additional_headers=headers, proxy=None) as client:
            if first is not None:
                await client.send(first if isinstance(first, str | bytes) else json.dumps(first))
            return await closed(client)


async def heard(client: ClientConnection) -> dict[str, Any]:
    async with asyncio.timeout(20):
        event: dict[str, Any] = json.loads(await client.recv())
        return event


async def closed(client: ClientConnection) -> CloseCode:
    with pytest.raises(ConnectionClosed) as caught:
        await asyncio.wait_for(client.recv(), 20)
    frame = caught.value.rcvd
    assert frame is not None
    assert frame.reason
    return CloseCode(frame.code)


async def eventually(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


class Remembering:
    """ASGI middleware that keeps the transports, to see what becomes of them."""

    def __init__(self, app: ASGIApp, transports: list[Any]) -> None:
        self._app, self._transports = app, transports

    async def __call__(self, scope: Scope, receive: Receive, send: Any) -> None:
        self._transports.append(send.__self__.transport)
        await self._app(scope, receive, send)


@asynccontextmanager
async def replica(
    serve: Serve,
    settings: Settings,
    recorded: Recorded,
    *,
    real_listeners: type[Service] | None = None,
    supervised: bool = True,
    can_abort: bool = True,
    server: dict[str, Any] | None = None,
    **options: Any,
) -> AsyncIterator[Replica]:
    telemetry, source, lifecycle, service = recorded.telemetry, Source(), Lifecycle(), Service()
    lifecycle.ready()
    async with AsyncExitStack() as stack:
        connections = await stack.enter_async_context(
            Connections(settings, telemetry, attempt_timeout_s=0.5, call_limit_s=1.0)
        )
        bus = Bus(
            settings, connections, telemetry, {}, probe_interval_s=0.2, probe_timeout_s=2.0, backoff_s=(0.01, 0.1)
        )
        hub = Hub(bus, telemetry)
        bus.sink, bus.on_gap = hub.deliver, hub.gap
        await stack.enter_async_context(bus)
        presence = await stack.enter_async_context(Presence(settings, connections, telemetry))
        listeners: Any = source
        if real_listeners is not None:
            members = Members(settings.replica_name(), connections, telemetry)
            listeners = Listeners(settings, telemetry, Leases(connections), members, presence, bus)
            service = real_listeners()
            listeners.declare(real_listeners.namespace, service)
            if supervised:
                await stack.enter_async_context(listeners)
        tickets = Tickets(settings, connections)
        gateway = WebSocketGateway(
            settings=settings, credentials=Credentials(settings), tickets=tickets, hub=hub, bus=bus, presence=presence,
            listeners=listeners, lifecycle=lifecycle, telemetry=telemetry, **options,
        )  # fmt: skip
        await stack.enter_async_context(gateway)
        transports: list[Any] = []
        middleware = [Middleware(Remembering, transports), *([Middleware(TransportAccess)] if can_abort else [])]
        address = await serve(Starlette(routes=gateway.routes(), middleware=middleware), **(server or {}))
        uid = f"u-{new_id()[:12]}"
        yield Replica(
            gateway, hub, bus, presence, tickets, source, lifecycle, recorded, address, uid, transports, service
        )
        async with asyncio.timeout(20):
            await gateway.drain()
        await eventually(lambda: not gateway.connections)


@pytest.fixture
async def desk(serve: Serve, make_settings: MakeSettings, recorded: Recorded) -> AsyncIterator[Replica]:
    settings = make_settings(
        LISTENERS_SERVICE_TOKENS="ci:limited:REGISTRY.get_*;ops:regi:REGISTRY.*",
        LISTENERS_ALLOWED_ORIGINS="https://app.example",
    )
    limits = Limits(resync_backoff_s=(0.01, 0.1))
    async with replica(serve, settings, recorded, first_frame_timeout_s=0.3, limits=limits) as made:
        yield made


# -- events


async def test_a_sync_comes_first_then_events_as_published(desk: Replica) -> None:
    async with desk.open() as client:
        sync = await heard(client)
        assert (sync["type"], sync["uid"], sync["payload"]) == ("notif.sync", desk.uid, {"count": 1})
        assert sync["id"]
        assert sync["timestamp"].endswith("Z")
        for number in range(3):
            await desk.publish(number)
        assert [(await heard(client))["payload"]["n"] for _ in range(3)] == [0, 1, 2]


async def test_a_foreign_publishers_text_arrives_unchanged(desk: Replica) -> None:
    text = '{ "hello": "wörld" }'
    async with desk.synced() as client:
        await desk.bus.publish_raw(f"user:{desk.uid}", text.encode())
        assert await client.recv() == text


async def test_all_channels_of_the_user_and_of_nobody_else(desk: Replica) -> None:
    async with desk.synced() as client:
        await desk.bus.publish(Event(type="notif.add", uid="somebody-else", payload={}))
        await desk.publish(1, "chat.message")
        await desk.publish(2, "msg.new")
        await desk.publish(3, "workflow.step_update")
        assert [(await heard(client))["payload"]["n"] for _ in range(2)] == [2, 3]


async def test_a_chat_thread_is_heard_by_the_connection_that_names_it(desk: Replica) -> None:
    async with desk.synced(space_code="s1", thread_key="-Nabc", mode="chats") as client:
        chat = Event(type="chat.message", uid=desk.uid, payload={"thread": 1})
        await desk.bus.publish(chat, specific=("s1", "-Nabd"))
        await desk.bus.publish(chat, specific=("s1", "-Nabc"))
        await desk.publish(1)
        assert (await heard(client))["payload"] == {"thread": 1}
        assert (await heard(client))["payload"] == {"n": 1}


async def test_what_arrives_during_the_snapshot_is_sent_after_it(desk: Replica) -> None:
    desk.source.gate.clear()
    async with desk.open() as client:
        await desk.source.reading.wait()
        await desk.publish(1)
        await desk.publish(2, "workflow.step_update", timestamp="2020-01-01T00:00:00.000Z")
        await desk.publish(3, timestamp="2020-01-01T00:00:00.000Z")
        await eventually(lambda: desk.recorded.metric("callboard_events_delivered_total", prefix="user:") == 3)
        desk.source.as_of = "2020-01-01T00:00:01.000Z"
        desk.source.gate.set()
        assert (await heard(client))["type"] == "notif.sync"
        assert (await heard(client))["payload"] == {"n": 1}
        assert (await heard(client))["payload"] == {"n": 2}, "the sync of notifications says nothing of workflows"
    assert desk.recorded.metric("callboard_events_dropped_total", prefix="user:", reason="covered") == 1


async def test_a_snapshot_that_fails_is_tried_again_and_events_wait(desk: Replica) -> None:
    desk.source.failures = [RuntimeError("secret"), Unavailable()]
    async with desk.open() as client:
        await desk.source.reading.wait()
        await desk.publish(1)
        assert (await heard(client))["payload"] == {"count": 3}
        assert (await heard(client))["payload"] == {"n": 1}
    assert "secret" not in desk.recorded.text


async def test_a_listener_that_cannot_be_read_is_read_again_soon(desk: Replica) -> None:
    desk.source.unreadable = 2
    async with desk.open() as client:
        assert (await heard(client))["payload"] == {"count": 3}
        desk.hub.gap()
        assert (await heard(client))["payload"] == {"count": 4}


async def test_after_a_gap_the_next_thing_is_a_sync(desk: Replica) -> None:
    async with desk.synced() as client, desk.synced() as other:
        desk.hub.gap()
        await desk.publish(1)
        for each in (client, other):
            assert (await heard(each))["type"] == "notif.sync"
            assert (await heard(each))["payload"] == {"n": 1}


async def test_after_redis_was_away_the_next_thing_is_a_sync(
    serve: Serve, own_valkey: ValkeyServer, make_settings: MakeSettings, recorded: Recorded
) -> None:
    settings = make_settings(LISTENERS_REDIS_PORT=str(own_valkey.port))
    async with replica(serve, settings, recorded, heartbeat_interval_s=0.05) as desk, desk.synced() as client:
        await own_valkey.kill()
        await eventually(lambda: desk.bus.state == "down")
        async with desk.open() as during:
            assert (await heard(during))["type"] == "notif.sync"
            await own_valkey.restart()
            for each in (client, during):
                assert (await heard(each))["type"] == "notif.sync"
            await desk.publish(1)
            for each in (client, during):
                assert (await heard(each))["payload"] == {"n": 1}
            async with asyncio.timeout(20):  # the heartbeat registers what Redis has lost
                while len(await desk.presence.list_sessions(desk.uid)) < 2:
                    await asyncio.sleep(0.005)


class Shop(Service):
    namespace = "SHOP"

    @listener
    class Items:
        async def snapshot(self, user: User) -> list[Event]:
            return [Event(type="notif.sync", uid=user.uid, payload={"of": user.uid})]

        async def changes(self, user: User) -> AsyncIterator[Event]:
            yield Event(type="notif.add", uid=user.uid, payload={"doc_id": "1"})
            await asyncio.Event().wait()


async def test_with_the_real_listeners(serve: Serve, make_settings: MakeSettings, recorded: Recorded) -> None:
    async with replica(serve, make_settings(), recorded, real_listeners=Shop) as desk, desk.open() as client:
        first = await heard(client)
        assert (first["type"], first["payload"]) == ("notif.sync", {"of": desk.uid})
        while (event := await heard(client))["type"] == "notif.sync":
            pass
        assert event["payload"] == {"doc_id": "1"}
        assert event["fence"] > 0


class Market(Service):
    """Three listeners whose events begin alike: one hangs, one fails `failures` times, one is well."""

    namespace = "MARKET"
    failures = 3

    def __init__(self) -> None:
        self.reads: Counter[str] = Counter()
        self.unhung = asyncio.Event()

    @listener
    class Hung:
        service: Market

        async def snapshot(self, user: User) -> list[Event]:
            self.service.reads["hung"] += 1
            await self.service.unhung.wait()
            return [Event(type="notif.sync", uid=user.uid, payload={"of": "hung"})]

        def changes(self, user: User) -> AsyncIterator[Event]:
            return _quiet()

    @listener
    class Failing:
        service: Market

        async def snapshot(self, user: User) -> list[Event]:
            self.service.reads["failing"] += 1
            failing = self.service.reads["failing"] <= self.service.failures
            return [Event(type="notif.sync", uid=user.uid, payload={"of": object() if failing else "failing"})]

        def changes(self, user: User) -> AsyncIterator[Event]:
            return _quiet()

    @listener
    class Well:
        service: Market

        async def snapshot(self, user: User) -> list[Event]:
            self.service.reads["well"] += 1
            return [Event(type="notif.sync", uid=user.uid, payload={"of": "well"})]

        def changes(self, user: User) -> AsyncIterator[Event]:
            return _quiet()


async def _quiet() -> AsyncIterator[Event]:
    await asyncio.Event().wait()
    yield Event(type="notif.never", uid="nobody", payload={})


async def test_no_listener_is_held_up_or_told_again_for_another(
    serve: Serve, make_settings: MakeSettings, recorded: Recorded
) -> None:
    options: Any = {"limits": Limits(resync_backoff_s=(0.01, 0.05)), "real_listeners": Market, "supervised": False}
    async with replica(serve, make_settings(), recorded, **options) as desk, desk.open() as client:
        market = desk.service
        async with asyncio.timeout(20):
            syncs = [await heard(client) for _ in range(2)]
        assert {(sync["payload"]["of"], sync["listener"]) for sync in syncs} == {
            ("well", "market.well"),
            ("failing", "market.failing"),
        }, "the third hangs"
        await desk.publish(1, listener="market.hung")
        await desk.publish(2, listener="market.well")
        assert (await heard(client))["payload"] == {"n": 2}
        market.unhung.set()
        assert [(await heard(client))["payload"] for _ in range(2)] == [{"of": "hung"}, {"n": 1}]
        assert market.reads == {"hung": 1, "failing": 4, "well": 1}
        assert recorded.lines("task_died") == []


class Rooms(Service):
    """A listener of the user's, and one per thread whose reads wait at `gates`, by thread key."""

    namespace = "ROOMS"

    def __init__(self) -> None:
        self.gates: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.reads: Counter[str] = Counter()
        self.begun: Counter[str] = Counter()

    @listener
    class Items(Shop.Items): ...

    @listener(per="thread")
    class Chat(Listener["Rooms"]):
        async def snapshot(self, user: User) -> list[Event]:
            self.service.reads[self.thread.thread_key] += 1
            await self.service.gates[self.thread.thread_key].wait()
            return [Event(type="chat.sync", uid=user.uid, payload={"of": self.thread.thread_key})]

        async def changes(self, user: User) -> AsyncIterator[Event]:
            self.service.begun[self.thread.thread_key] += 1
            yield Event(type="chat.message", uid=user.uid, payload={"in": self.thread.thread_key})
            await asyncio.Event().wait()


async def test_a_socket_hears_of_its_own_thread_and_the_sync_first(
    serve: Serve, make_settings: MakeSettings, recorded: Recorded
) -> None:
    options: Any = {"real_listeners": Rooms, "supervised": False}
    async with (
        replica(serve, make_settings(), recorded, **options) as desk,
        desk.open(space_code="acme", thread_key="t1") as first,
        desk.open(space_code="acme", thread_key="t2") as second,
        desk.open() as none,
    ):
        for client in (first, second, none):  # the threads' syncs hang, and cost nobody theirs
            assert (await heard(client))["payload"] == {"of": desk.uid}
        await eventually(lambda: desk.service.reads == {"t1": 1, "t2": 1})
        message = Event(type="chat.message", uid=desk.uid, payload={"n": 1}, listener="rooms.chat:acme:t1")
        await desk.bus.publish(message, specific=("acme", "t1"))
        await desk.publish(2)
        for client in (first, second, none):
            assert (await heard(client))["payload"] == {"n": 2}
        desk.service.gates["t1"].set()
        sync = await heard(first)
        assert (sync["type"], sync["listener"], sync["payload"]) == ("chat.sync", "rooms.chat:acme:t1", {"of": "t1"})
        assert (await heard(first))["payload"] == {"n": 1}
        desk.service.gates["t2"].set()
        assert (await heard(second))["payload"] == {"of": "t2"}
        await desk.publish(3)
        for client in (first, second, none):
            assert (await heard(client))["payload"] == {"n": 3}
        desk.hub.gap()
        for client, expected in ((first, {"t1"}), (second, {"t2"}), (none, set())):
            syncs = {(await heard(client))["payload"]["of"] for _ in range(1 + len(expected))}
            assert syncs == {desk.uid, *expected}


async def test_a_threads_listener_runs_while_its_socket_is_open(
    serve: Serve, make_settings: MakeSettings, recorded: Recorded
) -> None:
    async with replica(serve, make_settings(), recorded, real_listeners=Rooms) as desk:
        listeners: Listeners = desk.gateway._listeners
        desk.service.gates["t1"].set()
        for _ in range(2):  # the second time is a page reload
            async with desk.open(space_code="acme", thread_key="t1", mode="job_chats") as client:
                missing = {"chat.sync", "notif.sync"}
                while missing:  # the listener's own first sync may come between
                    missing.discard((await heard(client))["type"])
                await eventually(lambda: listeners.is_active(desk.uid, "rooms.chat"))
            [row] = [row for row in listeners.status() if row["thread"] is not None]
            assert row["thread"] == Thread("acme", "t1", "job_chats")
        assert desk.service.begun == {"t1": 1}
        await eventually(lambda: not desk.gateway.connections)
        listeners._attendance._grace_s = 0.0  # how long it waits is not the question here
        listeners._attendance._check_threads()
        await eventually(lambda: not listeners.is_active(desk.uid, "rooms.chat"))


async def test_a_stale_owner_of_a_thread_is_not_heard(desk: Replica) -> None:
    async def publish(n: int, fence: int, thread: str) -> None:
        event = Event(
            type="chat.message", uid=desk.uid, payload={"n": n}, fence=fence, listener=f"rooms.chat:a:{thread}"
        )
        await desk.bus.publish(event, specific=("a", thread))

    async with (
        desk.synced(space_code="a", thread_key="t1") as first,
        desk.synced(space_code="a", thread_key="t2") as other,
    ):
        await publish(1, 10, "t1")
        await publish(2, 9, "t1")  # the replica that had it before
        await publish(3, 10, "t1")
        assert [(await heard(first))["payload"]["n"] for _ in range(2)] == [1, 3]
        await publish(4, 5, "t2")  # the control: another thread's lease
        assert (await heard(other))["payload"] == {"n": 4}
    assert desk.recorded.metric("callboard_events_dropped_total", prefix="chat:", reason="fenced") == 1


# -- who is let in


async def test_a_users_own_credential_opens_threads_of_their_companies_alone(desk: Replica) -> None:
    async def verify(token: str) -> VerifiedToken:
        return VerifiedToken(desk.uid, time.time() + 3_600)

    def ticket() -> dict[str, Any]:
        return {"type": "auth.ticket", "payload": {"ticket": desk.tickets.issue(desk.uid)}}

    desk.gateway.verify_token = verify
    token = {"type": "auth.firebase_token", "payload": {"token": "good"}}
    inside, outside = ({"space_code": code, "thread_key": "t"} for code in ("acme", "other"))

    async def let_in(frame: dict[str, Any], **query: str) -> list[str]:
        async with desk.open(None, **query) as client:
            await client.send(json.dumps(frame))
            types = [(await heard(client))["type"]]
            return types if types == ["notif.sync"] else [*types, (await heard(client))["type"]]

    assert await let_in(ticket(), **outside) == ["notif.sync"], "who may see all companies may open all spaces"
    for companies in (["acme"], []):
        await desk.presence.register(desk.uid, "tab", authorized_companies_ids=companies)
        assert await desk.refused(None, ticket(), desk.url(**outside)) == CloseCode.FORBIDDEN
        async with desk.open(None, **outside) as client:
            await client.send(json.dumps(token))
            assert (await heard(client))["type"] == "auth.login_error"
            assert await closed(client) == CloseCode.FORBIDDEN
        if companies:
            assert await let_in(ticket(), **inside) == ["notif.sync"]
            assert await let_in(token, **inside) == ["auth.session_confirmed", "notif.sync"]
        assert await let_in(ticket()) == ["notif.sync"]  # without a thread
        async with desk.synced(**outside):  # a service is trusted
            pass


async def test_a_thread_is_closed_when_its_space_is_no_more_the_users(
    serve: Serve, make_settings: MakeSettings, recorded: Recorded
) -> None:
    async with replica(serve, make_settings(), recorded, heartbeat_interval_s=0.02) as desk, AsyncExitStack() as stack:

        async def opened(headers: dict[str, str] | None, **query: str) -> ClientConnection:
            client = await stack.enter_async_context(desk.open(headers, **query))
            if headers is None:
                await client.send(
                    json.dumps({"type": "auth.ticket", "payload": {"ticket": desk.tickets.issue(desk.uid)}})
                )
            assert (await heard(client))["type"] == "notif.sync"
            return client

        await desk.presence.register(desk.uid, "tab", authorized_companies_ids=["acme", "other"])
        mine = await opened(None, space_code="acme", thread_key="t")
        others = await opened(None, space_code="other", thread_key="t")
        whole = await opened(None)
        services = await opened(SERVICE, space_code="acme", thread_key="t")
        await desk.presence.register(desk.uid, "tab", authorized_companies_ids=["other"])
        assert await closed(mine) == CloseCode.FORBIDDEN
        await desk.publish(1)
        for client in (others, whole, services):  # the controls
            assert (await heard(client))["payload"] == {"n": 1}


async def test_without_redis_no_user_opens_a_thread(
    serve: Serve, own_valkey: ValkeyServer, make_settings: MakeSettings, recorded: Recorded
) -> None:
    async def verify(token: str) -> VerifiedToken:
        return VerifiedToken(token, time.time() + 3_600)

    async with replica(serve, make_settings(LISTENERS_REDIS_PORT=str(own_valkey.port)), recorded) as desk:
        desk.gateway.verify_token = verify
        await own_valkey.kill()
        token = json.dumps({"type": "auth.firebase_token", "payload": {"token": desk.uid}})
        async with desk.open(None, space_code="acme", thread_key="t") as client:
            await client.send(token)
            assert (await heard(client))["type"] == "auth.login_error"
            assert await closed(client) == CloseCode.UNAVAILABLE
        async with desk.open(None) as client:  # the control: what needs no look at companies
            await client.send(token)
            assert (await heard(client))["type"] == "auth.session_confirmed"


async def test_a_ticket_opens_one_connection_of_its_user(desk: Replica) -> None:
    frame = {"type": "auth.ticket", "payload": {"ticket": desk.tickets.issue(desk.uid)}}
    async with desk.open(None) as client:
        await client.send(json.dumps(frame))
        assert (await heard(client))["type"] == "notif.sync"
    assert await desk.refused(None, frame) == CloseCode.BAD_CREDENTIAL
    other = {"type": "auth.ticket", "payload": {"ticket": desk.tickets.issue("somebody-else")}}
    assert await desk.refused(None, other) == CloseCode.FORBIDDEN


async def test_wrong_credentials_are_refused(desk: Replica) -> None:
    for header in ("Bearer wrong", "Bearer", "Basic t0ken", "Bearer t0ken2"):
        assert await desk.refused({"Authorization": header}) == CloseCode.BAD_CREDENTIAL
    assert await desk.refused({"Authorization": "Bearer limited"}) == CloseCode.FORBIDDEN
    async with desk.open({"Authorization": "Bearer regi"}) as client:
        assert (await heard(client))["type"] == "notif.sync"
    assert desk.source.reads == 1


async def test_first_frames_that_are_no_credential(desk: Replica) -> None:
    assert await desk.refused(None) == CloseCode.BAD_CREDENTIAL, "nothing came"
    for junk in (
        "hello",
        "[]",
        "{",
        b"\x00",
        '{"type":5}',
        {"type": "auth.ticket"},
        {"type": "auth.ticket", "payload": []},
    ):
        assert await desk.refused(None, junk) == CloseCode.BAD_REQUEST
    for payload in ("[]", "{}", '{"ticket": 5}'):
        assert await desk.refused(None, f'{{"type": "auth.ticket", "payload": {payload}}}') == CloseCode.BAD_REQUEST
    assert await desk.refused(None, {"type": "hello"}) == CloseCode.BAD_CREDENTIAL
    assert await desk.refused(None, {"type": "auth.ticket", "payload": {"ticket": "x"}}) == CloseCode.BAD_CREDENTIAL
    assert desk.source.reads == 0
    assert desk.gateway.connections == 0


async def test_id_tokens(desk: Replica) -> None:
    def frame(token: str, **more: str) -> str:
        return json.dumps({"type": "auth.firebase_token", "payload": {"token": token, "uid": desk.uid, **more}})

    async def first_answer(sent: str) -> tuple[dict[str, Any], CloseCode | None]:
        async with desk.open(None) as client:
            await client.send(sent)
            answer = await heard(client)
            return answer, await closed(client) if answer["type"] == "auth.login_error" else None

    answer, code = await first_answer(frame("good"))
    assert (answer["type"], code) == ("auth.login_error", CloseCode.BAD_CREDENTIAL)

    async def verify(token: str) -> VerifiedToken:
        uids = {"good": desk.uid, "other": "somebody-else", "short": desk.uid}
        if token not in uids:
            raise Unauthenticated("This token is not valid.")
        return VerifiedToken(uids[token], time.time() + (0 if token == "short" else 3_600))

    desk.gateway.verify_token = verify
    for token, expected in {"bad": CloseCode.BAD_CREDENTIAL, "other": CloseCode.FORBIDDEN}.items():
        answer, code = await first_answer(frame(token))
        assert (answer["type"], code) == ("auth.login_error", expected)
    answer, code = await first_answer(frame("good", sessionId="tab 1"))
    assert (answer["type"], code) == ("auth.login_error", CloseCode.BAD_REQUEST)
    async with desk.open(None) as client:
        await client.send(frame("good", sessionId="tab-1"))
        answer = await heard(client)
        assert answer == {"type": "auth.session_confirmed", "payload": {"uid": desk.uid, "sessionId": "tab-1"}}
        assert (await heard(client))["type"] == "notif.sync"
    async with desk.open(None) as client:
        await client.send(frame("short"))
        assert [(await heard(client))["type"] for _ in range(2)] == ["auth.session_confirmed", "notif.sync"]
        assert await closed(client) == CloseCode.CREDENTIAL_EXPIRED


async def test_queries_that_make_no_sense(desk: Replica) -> None:
    base = f"ws://{desk.address}/ws"
    for query in (
        "",
        "?uid=",
        "?uid=a%20b",
        "?uid=*",
        "?uid=me%0A",
        "?uid=user:me",
        "?uid=a&uid=b",
        "?uid=%ff",
        f"?uid={'x' * 129}",
        "?uid=a&session_id=b%20c",
        "?uid=a&space_code=s",
        "?uid=a&thread_key=t",
        "?uid=a&space_code=s&thread_key=*",
        "?uid=a&mode=other",
        "?uid=a&" + "x=1&" * 60,
        "?uid=a&x=" + "y" * 5_000,
    ):
        assert await desk.refused(url=base + query) == CloseCode.BAD_REQUEST, query
    async with desk.synced(from_the_future="1", space_code="s", thread_key="t"):
        pass


async def test_browsers_come_from_allowed_origins(desk: Replica) -> None:
    for origin in (
        "https://evil.example",
        "https://app.example.evil.example",
        "http://app.example",
        "null",
        "http://127.0.0.1",
    ):
        assert await desk.refused({**SERVICE, "Origin": origin}) == CloseCode.FORBIDDEN, origin
    async with desk.open({**SERVICE, "Origin": "https://App.example"}) as client:
        assert (await heard(client))["type"] == "notif.sync"


async def test_dev_mode_takes_local_pages(serve: Serve, make_settings: MakeSettings, recorded: Recorded) -> None:
    async with replica(serve, make_settings(LISTENERS_DEV="true"), recorded) as desk:
        for origin in ("http://localhost:3000", "http://127.0.0.1:8080", "http://[::1]:3000"):
            async with desk.open({**SERVICE, "Origin": origin}) as client:
                assert (await heard(client))["type"] == "notif.sync"
        for origin in ("https://evil.example", "http://localhost.evil.example", "http://[", "null"):
            assert await desk.refused({**SERVICE, "Origin": origin}) == CloseCode.FORBIDDEN


async def test_an_unready_replica_sends_clients_elsewhere(desk: Replica) -> None:
    desk.lifecycle.state = "starting"
    assert await desk.refused() == CloseCode.UNAVAILABLE
    desk.lifecycle.state = "draining"
    assert await desk.refused() == CloseCode.SHUTTING_DOWN


# -- presence


async def test_an_open_socket_is_a_session(desk: Replica) -> None:
    async def sessions() -> set[str]:
        return {session.session_id for session in await desk.presence.list_sessions(desk.uid)}

    async def eventually_sessions(expected: set[str]) -> None:
        async with asyncio.timeout(20):
            while await sessions() != expected:
                await asyncio.sleep(0.005)

    async with desk.synced(session_id="tab-1"), desk.synced(session_id="tab-2"):
        assert await sessions() == {"tab-1", "tab-2"}
        async with desk.synced():
            assert len(await sessions()) == 3
        async with desk.synced(session_id="tab-1"):
            pass
        await eventually(lambda: desk.gateway.connections == 2)
        await eventually_sessions({"tab-1", "tab-2"})
    await eventually_sessions(set())


async def test_two_sockets_of_a_session_that_open_at_once_leave_no_session_behind(
    desk: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As two tabs do of which one was made from the other: the register that began first comes to Redis last."""
    register, calls, second = desk.presence.register, 0, asyncio.Event()

    async def crossing(*args: Any, **kwargs: Any) -> bool:
        nonlocal calls
        calls += 1
        if calls == 1:
            await second.wait()
            return await register(*args, **kwargs)
        came = await register(*args, **kwargs)
        second.set()
        return came

    monkeypatch.setattr(desk.presence, "register", crossing)
    async with desk.open(session_id="tab") as one, desk.open(session_id="tab") as two:
        for client in (one, two):
            assert (await heard(client))["type"] == "notif.sync"
        assert calls == 2
        assert [each.session_id for each in await desk.presence.list_sessions(desk.uid)] == ["tab"]
    async with asyncio.timeout(20):
        while await desk.presence.list_sessions(desk.uid):
            await asyncio.sleep(0.005)


async def test_a_dead_socket_does_not_end_a_session_that_has_come_back_elsewhere(
    serve: Serve, make_settings: MakeSettings, recorded: Recorded
) -> None:
    async with replica(serve, make_settings(), recorded) as one, replica(serve, make_settings(), recorded) as two:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(one.synced(session_id="tab"))
            await stack.enter_async_context(two.synced(uid=one.uid, session_id="tab"))
            await one.gateway.drain()  # returns when what its socket leaves behind is settled
            assert [each.session_id for each in await two.presence.list_sessions(one.uid)] == ["tab"]
        await two.gateway.drain()
        assert await two.presence.list_sessions(one.uid) == []


async def test_the_heartbeat_registers_a_session_that_redis_lost(
    serve: Serve, make_settings: MakeSettings, recorded: Recorded
) -> None:
    tabs = [f"tab-{new_id()}" for _ in range(3)]
    async with replica(serve, make_settings(), recorded, heartbeat_interval_s=0.02) as desk, AsyncExitStack() as stack:
        for tab in tabs:
            await stack.enter_async_context(desk.synced(session_id=tab))
        kept = {session.session_id: session.registered_at for session in await desk.presence.list_sessions(desk.uid)}
        for lost in tabs[:2]:
            await desk.presence.unregister(lost)
        async with asyncio.timeout(20):
            while len(sessions := await desk.presence.list_sessions(desk.uid)) < 3:
                await asyncio.sleep(0.005)
        now = {session.session_id: session.registered_at for session in sessions}
        assert now.keys() == set(tabs)
        assert now[tabs[2]] == kept[tabs[2]]
        assert recorded.lines("task_failed") == []


async def test_a_hurried_heartbeat_registers_what_redis_lost_at_once(
    serve: Serve, make_settings: MakeSettings, recorded: Recorded
) -> None:
    async with (
        replica(serve, make_settings(), recorded, heartbeat_interval_s=3_600) as desk,
        desk.synced(session_id=f"tab-{new_id()}"),
    ):
        [session] = await desk.presence.list_sessions(desk.uid)
        await desk.presence.unregister(session.session_id)
        desk.gateway.hurry()
        async with asyncio.timeout(20):
            while not await desk.presence.list_sessions(desk.uid):
                await asyncio.sleep(0.005)


async def test_a_heartbeat_that_is_hurried_again_and_again_leaves_no_session_out(
    serve: Serve, make_settings: MakeSettings, recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("callboard.gateway.sessions._BEATS_AT_A_TIME", 1)
    tabs = [f"tab-{new_id()}" for _ in range(3)]
    settings = make_settings()
    async with replica(serve, settings, recorded, heartbeat_interval_s=3_600) as desk, AsyncExitStack() as stack:
        for tab in tabs:
            await stack.enter_async_context(desk.synced(session_id=tab))
        keep_alive = desk.presence.keep_alive

        async def flapping(sessions: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
            desk.gateway.hurry()
            return await keep_alive(sessions)

        monkeypatch.setattr(desk.presence, "keep_alive", flapping)
        await desk.presence.unregister(tabs[-1])
        desk.gateway.hurry()
        async with asyncio.timeout(20):
            while len(await desk.presence.list_sessions(desk.uid)) < len(tabs):
                await asyncio.sleep(0.005)


async def test_a_users_credential_takes_no_session_from_another(
    serve: Serve, make_settings: MakeSettings, recorded: Recorded
) -> None:
    tab, alice, mallory = f"tab-{new_id()}", f"alice-{new_id()[:8]}", f"mallory-{new_id()[:8]}"
    async with replica(serve, make_settings(), recorded, heartbeat_interval_s=0.02) as desk:

        async def verify(token: str) -> VerifiedToken:
            return VerifiedToken(token, time.time() + 3_600)

        async def sessions(uid: str) -> list[str]:
            return [session.session_id for session in await desk.presence.list_sessions(uid)]

        desk.gateway.verify_token = verify
        ticket = {"type": "auth.ticket", "payload": {"ticket": desk.tickets.issue(mallory)}}
        token = {"type": "auth.firebase_token", "payload": {"token": mallory}}
        async with desk.synced(uid=alice, session_id=tab):
            async with desk.open(None, uid=mallory, session_id=tab) as first:
                await first.send(json.dumps(ticket))
                assert (await heard(first))["uid"] == mallory
                async with desk.open(None, uid=mallory, session_id=tab) as second:
                    await second.send(json.dumps(token))
                    confirmed = (await heard(second))["payload"]["sessionId"]
                    assert (await heard(second))["uid"] == mallory
                    assert await sessions(alice) == [tab]
                    hers = await sessions(mallory)
                    assert (len(hers), confirmed in hers, tab in hers) == (2, True, False)
            await eventually(lambda: desk.gateway.connections == 1)
            async with asyncio.timeout(20):
                while await sessions(mallory):
                    await asyncio.sleep(0.005)
            assert await sessions(alice) == [tab]
            async with desk.synced(uid=mallory, session_id=tab):  # a service may
                assert await sessions(mallory) == [tab]
                async with asyncio.timeout(20):  # the heartbeat gives her socket a session of its own
                    while not (hers := await sessions(alice)):
                        await asyncio.sleep(0.005)
                assert hers != [tab]
                assert await sessions(mallory) == [tab]


async def test_clients_that_show_no_credential_are_bounded(
    serve: Serve, make_settings: MakeSettings, recorded: Recorded
) -> None:
    async with replica(serve, make_settings(), recorded, max_entering=2) as desk, AsyncExitStack() as stack:
        for _ in range(2):
            await stack.enter_async_context(desk.open(None))
        await eventually(lambda: desk.gateway._entering == 2)
        assert await desk.refused() == CloseCode.UNAVAILABLE
        assert recorded.lines("ws_disconnect")[-1]["reason"] == "Too many connections have shown no credential yet."
        await stack.aclose()
        await eventually(lambda: desk.gateway._entering == 0)
        async with desk.synced():
            pass


# -- what clients send


async def test_a_users_sockets_are_bounded(serve: Serve, make_settings: MakeSettings, recorded: Recorded) -> None:
    settings = make_settings(LISTENERS_MAX_CONNECTIONS="3", LISTENERS_MAX_CONNECTIONS_PER_USER="2")
    async with replica(serve, settings, recorded) as desk, desk.synced():
        async with desk.synced():
            assert await desk.refused() == CloseCode.TOO_MANY
            async with desk.open(uid="another"):
                await eventually(lambda: desk.gateway.connections == 3)
                assert await desk.refused(url=desk.url(uid="third")) == CloseCode.UNAVAILABLE
                reason = recorded.lines("ws_disconnect")[-1]["reason"]
                assert reason == "This replica has all the connections it takes."
        await eventually(lambda: desk.gateway.connections == 1)
        async with desk.synced():
            assert desk.gateway.connections == 2


async def test_no_connection_is_kept_for_ever(serve: Serve, make_settings: MakeSettings, recorded: Recorded) -> None:
    settings = make_settings(LISTENERS_MAX_CONNECTION_AGE_S="1")
    async with replica(serve, settings, recorded, tend_interval_s=0.05) as desk:
        began = time.monotonic()
        async with desk.synced() as client:
            assert await closed(client) == CloseCode.CREDENTIAL_EXPIRED
            assert client.close_reason == "The connection is too old."
        assert time.monotonic() - began >= 0.9


async def test_clients_may_ping_and_say_nothing_else(desk: Replica) -> None:
    async with desk.synced() as client:
        for ignored in (
            "junk",
            "{}",
            '{"type":"auth.ticket"}',
            '{"type":"x","note":"\\"ping\\""}',
            '{"ping"',
            "x" * 60_000,
        ):
            await client.send(ignored)
        await client.send('{"type": "ping"}')
        assert await heard(client) == {"type": "pong"}


async def test_binary_frames_are_refused(desk: Replica) -> None:
    async with desk.synced() as client:
        await client.send(b"bytes")
        assert await closed(client) == CloseCode.BAD_REQUEST


async def test_a_frame_over_64_kib_ends_the_connection(desk: Replica) -> None:
    async with desk.synced() as client:
        await client.send("x" * 70_000)
        with pytest.raises(ConnectionClosed) as caught:
            await client.recv()
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1009


async def test_a_flood_of_frames_ends_the_connection(desk: Replica) -> None:
    async with desk.synced() as client:
        for _ in range(500):
            await client.send("{}")
        assert await closed(client) == CloseCode.BAD_REQUEST


# -- slow clients


class Stalled:
    """A client that opens a WebSocket and then never reads."""

    def __init__(self, desk: Replica) -> None:
        host, port = desk.address.split(":")
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_048)
        self.socket.setblocking(False)
        self._address = (host, int(port))
        key = base64.b64encode(b"0" * 16).decode()
        self._request = (
            f"GET /ws?uid={desk.uid} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\nAuthorization: Bearer t0ken\r\n\r\n"
        )

    async def __aenter__(self) -> Stalled:
        loop = asyncio.get_running_loop()
        await loop.sock_connect(self.socket, self._address)
        await loop.sock_sendall(self.socket, self._request.encode())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.socket.close()

    async def is_dropped(self) -> None:
        """Return once the server has closed: what was sent is read, then comes the end or a reset."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(20):
            try:
                while await loop.sock_recv(self.socket, 1_000_000):
                    pass
            except ConnectionResetError:
                pass


async def flood(desk: Replica, client: ClientConnection, enough: Callable[[], object]) -> None:
    """Publish large events, each read by `client`, until it is enough."""
    number = 0
    async with asyncio.timeout(30):
        while not enough():
            number += 1
            await desk.bus.publish(
                Event(type="notif.add", uid=desk.uid, payload={"n": number, "filling": "x" * 100_000})
            )
            assert (await heard(client))["payload"]["n"] == number


async def test_a_client_that_never_reads_is_dropped_and_nobody_else_notices(
    serve: Serve, make_settings: MakeSettings, recorded: Recorded
) -> None:
    async with (
        replica(serve, make_settings(), recorded, limits=Limits(outbox_bytes=500_000)) as desk,
        Stalled(desk) as stalled,
        desk.synced() as client,
    ):
        await eventually(lambda: desk.source.reads == 2)
        await flood(desk, client, lambda: desk.gateway.connections == 1)
        await stalled.is_dropped()
        await desk.publish(7)
        assert (await heard(client))["payload"] == {"n": 7}
    assert recorded.metric("callboard_ws_closed_total", code="3008") == 1
    assert recorded.metric("callboard_events_dropped_total", prefix="user:", reason="closed") > 0


async def test_a_client_is_dropped_when_its_oldest_frame_has_waited_too_long(
    serve: Serve, make_settings: MakeSettings, recorded: Recorded
) -> None:
    limits = Limits(outbox_bytes=1_000_000_000, outbox_age_s=0.3)
    async with (
        replica(serve, make_settings(), recorded, limits=limits, tend_interval_s=0.05) as desk,
        Stalled(desk) as stalled,
    ):
        await eventually(lambda: desk.gateway.connections == 1)
        while desk.gateway.connections:
            await desk.publish(1, "notif.add", job_id="x" * 100_000)
        await stalled.is_dropped()
    assert recorded.metric("callboard_ws_closed_total", code="3008") == 1


async def test_a_sync_that_a_client_does_not_read_gets_it_dropped_too(
    serve: Serve, make_settings: MakeSettings, recorded: Recorded
) -> None:
    limits = Limits(outbox_age_s=0.3, resync_backoff_s=(0.01, 0.01))
    async with replica(serve, make_settings(), recorded, limits=limits, tend_interval_s=0.05) as desk:
        desk.source.payload = {"filling": "x" * 20_000_000}
        desk.source.copies = 3
        async with Stalled(desk) as stalled:
            await eventually(lambda: recorded.metric("callboard_ws_closed_total", code="3008") == 1)
            await stalled.is_dropped()


def holds_bytes(transport: Any) -> bool:
    return not transport.is_closing() or transport.get_write_buffer_size() > 0


@pytest.mark.parametrize("can_abort", [True, False])
async def test_a_dropped_client_holds_nothing(
    serve: Serve, make_settings: MakeSettings, recorded: Recorded, can_abort: bool
) -> None:
    limits = Limits(outbox_bytes=500_000)
    async with replica(serve, make_settings(), recorded, limits=limits, can_abort=can_abort) as desk, Stalled(desk):
        await eventually(lambda: desk.gateway.connections == 1)
        while desk.gateway.connections:
            await desk.publish(1, job_id="x" * 100_000)
        if can_abort:
            await eventually(lambda: not holds_bytes(desk.transports[0]))
        else:  # the control: without the transport at hand the bytes stay until the kernel gives up
            assert holds_bytes(desk.transports[0])


async def test_a_client_that_answers_no_ping_is_dropped(
    serve: Serve, make_settings: MakeSettings, recorded: Recorded
) -> None:
    options: Any = {"limits": Limits(outbox_bytes=1_000_000_000, stuck_after_s=0.1), "tend_interval_s": 0.05}
    options["server"] = {"ws_ping_interval": 3_600, "ws_ping_timeout": 0.2}
    async with replica(serve, make_settings(), recorded, **options) as desk, Stalled(desk):
        await eventually(lambda: desk.gateway.connections == 1)
        for _ in range(50):  # more than the kernel's buffers hold
            await desk.publish(1, job_id="x" * 200_000)
        (transport,) = desk.transports
        await eventually(transport.get_write_buffer_size)
        transport.get_protocol().send_keepalive_ping()  # an earlier one might find nothing that waits to be read
        await eventually(lambda: recorded.metric("callboard_ws_closed_total", code="3012") == 1)
        assert not holds_bytes(desk.transports[0])


# -- the end


async def test_drain_sends_all_clients_elsewhere_and_stalls_for_nobody(
    serve: Serve, make_settings: MakeSettings, recorded: Recorded
) -> None:
    options: Any = {"limits": Limits(outbox_bytes=1_000_000_000), "drain_spread_s": 0.1}
    async with replica(serve, make_settings(), recorded, **options) as desk, Stalled(desk), AsyncExitStack() as stack:
        await eventually(lambda: desk.source.reads == 1)
        for _ in range(50):  # more than the kernel's buffers hold
            await desk.publish(1, job_id="x" * 200_000)
        clients = [await stack.enter_async_context(desk.synced()) for _ in range(60)]
        assert desk.gateway.connections == 61
        assert recorded.metric("callboard_ws_connections") == 61
        async with asyncio.timeout(20):
            await desk.gateway.drain()
        assert {await closed(client) for client in clients} == {CloseCode.SHUTTING_DOWN}
        await eventually(lambda: desk.gateway.connections == 0)
        assert recorded.metric("callboard_ws_connections") == 0
        assert await desk.refused() == CloseCode.SHUTTING_DOWN
        async with asyncio.timeout(20):
            while await desk.presence.list_sessions(desk.uid):
                await asyncio.sleep(0.005)


async def test_logs_name_no_session_and_no_query(
    serve: Serve, make_settings: MakeSettings, caplog: pytest.LogCaptureFixture
) -> None:
    recorded = Recorded()
    recorded.telemetry.debug = False
    async with replica(serve, make_settings(), recorded) as desk:
        async with desk.synced(session_id="secret-session"):
            pass
        await eventually(lambda: recorded.lines("ws_disconnect"))
        [connected], [disconnected] = recorded.lines("ws_connect"), recorded.lines("ws_disconnect")
        assert connected["credential"] == "service"
        assert connected["uid"] == disconnected["uid"] == recorded.telemetry.user(desk.uid)
        assert disconnected["code"] == 1000
        assert recorded.metric("callboard_ws_closed_total", code="1000") == 1
        assert desk.uid not in recorded.text
        assert "secret-session" not in recorded.text


def test_close_codes_say_whether_to_reconnect() -> None:
    assert {code for code in CloseCode if not code.reconnect} == {3500, 3501, 3505, 3507}
    assert all(code.reason for code in CloseCode)
