"""The namespace in a whole service."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from google.cloud.firestore import AsyncClient

import callboard_registry
from callboard import CallError, Event, Listener, User, hookimpl, listener
from callboard import Service as Namespace
from callboard.connections import Connections
from callboard.credentials import Credential
from callboard.errors import Unauthenticated
from callboard.fleet.presence import Presence
from callboard.host import Host
from callboard.messages import Call, encode
from callboard.settings import Settings, load
from callboard.testing import CallFailed, Service, running
from callboard_local import FirestoreProcess, ValkeyServer
from callboard_registry import Registry
from callboard_registry.mirror import Entry

if TYPE_CHECKING:
    from .conftest import Eventually, Log

pytestmark = pytest.mark.anyio


class Things(Namespace):
    """A namespace with something to listen to."""

    namespace = "THINGS"

    @listener(name="things")
    class Changes(Listener["Things"]):
        async def snapshot(self, user: User) -> list[Event]:
            return [Event(type="notif.sync", uid=user.uid, payload={"notifications": [], "count": 0})]

        async def changes(self, user: User) -> AsyncIterator[Event]:
            await asyncio.Event().wait()
            yield Event(type="notif.add", uid=user.uid, payload={})

    @listener(per="thread")
    class Talk(Listener["Things"]):
        async def snapshot(self, user: User) -> list[Event]:
            return [Event(type="chat.sync", uid=user.uid, payload={"mode": self.thread.mode})]

        async def changes(self, user: User) -> AsyncIterator[Event]:
            await asyncio.Event().wait()
            yield Event(type="chat.message", uid=user.uid, payload={})


class ThingsPlugin:
    @hookimpl
    def register_services(self, settings: Settings) -> Sequence[type[Namespace]]:
        return [Things]


def on(valkey: ValkeyServer) -> dict[str, str]:
    return {"LISTENERS_REDIS_HOST": "127.0.0.1", "LISTENERS_REDIS_PORT": str(valkey.port)}


@pytest.fixture
async def service(own_valkey: ValkeyServer) -> AsyncIterator[Service]:
    """Without a Firestore."""
    async with running(callboard_registry, ThingsPlugin(), environ=on(own_valkey)) as service:
        yield service


def registry_of(service: Service) -> Registry:
    found = service.callboard.plugins.all[0].services[0]
    assert isinstance(found, Registry)
    return found


# -- sessions


async def test_a_session_makes_a_user_online_and_its_end_offline(service: Service) -> None:
    assert await service.call("REGISTRY.get_user", "u1") is None
    answer = await service.call("REGISTRY.register_user", "u1", "s1", "/dashboard", ["c1"])
    assert answer == {
        "user_id": "u1", "session_id": "s1", "came_online": True, "ttl_seconds": 90, "heartbeat_interval_seconds": 30,
    }  # fmt: skip
    user = await service.call("REGISTRY.get_user", "u1")
    assert user.pop("heartbeat_at").endswith("Z")
    assert user == {
        "uid": "u1", "status": "online", "sessions": 1, "authorized_companies_ids": ["c1"], "ttl_seconds": 90,
    }  # fmt: skip
    assert await service.call("REGISTRY.unregister_session", "s1") == {"session_id": "s1", "user_id": "u1"}
    assert (await service.call("REGISTRY.get_user", "u1"))["status"] == "offline"


async def test_logging_out_of_one_session_leaves_the_others_online(service: Service) -> None:
    for session in ("tab", "phone", "tablet"):
        await service.call("REGISTRY.register_user", "u1", session, f"/{session}")
    assert (await service.call("REGISTRY.register_user", "u1", "phone"))["came_online"] is False
    await service.call("REGISTRY.unregister_session", "phone")
    sessions = await service.call("REGISTRY.list_sessions", "u1")
    assert {session["session_id"]: session["backend_route"] for session in sessions} == {
        "tab": "/tab", "tablet": "/tablet",
    }  # fmt: skip
    assert (await service.call("REGISTRY.get_user", "u1"))["status"] == "online"


async def test_a_session_that_is_not_there_is_no_error(service: Service) -> None:
    assert await service.call("REGISTRY.unregister_session", "s0") == {"session_id": "s0", "user_id": None}
    assert await service.call("REGISTRY.heartbeat", "s0") == {"session_id": "s0", "alive": False}
    await service.call("REGISTRY.register_user", "u1", "s1")
    assert await service.call("REGISTRY.heartbeat", "s1") == {"session_id": "s1", "alive": True}
    assert await service.call("REGISTRY.list_sessions", "nobody") == []


async def test_online_users_come_in_pages(service: Service) -> None:
    for number in range(5):
        await service.call("REGISTRY.register_user", f"u{number}", f"s{number}")
    first = await service.call("REGISTRY.online_users", limit=3)
    assert first["users"] == ["u0", "u1", "u2"]
    assert await service.call("REGISTRY.online_users", first["cursor"], 3) == {"users": ["u3", "u4"], "cursor": None}


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("register_user", ["u/1", "s1"]),
        ("register_user", ["u1", "s 1"]),
        ("unregister_session", [""]),
        ("heartbeat", ["a:b"]),
        ("get_user", ["*"]),
        ("online_users", [None, 0]),
        ("online_users", [None, 1001]),
        ("sync", ["u/1"]),
        ("check_listener_status", ["u1", ""]),
        ("issue_ticket", ["u1", 0]),
        ("issue_ticket", ["u1", 3601]),
        ("issue_ticket", ["u/1"]),
    ],
)
async def test_arguments_that_cannot_be_are_refused(service: Service, method: str, arguments: list[Any]) -> None:
    with pytest.raises(CallFailed) as refused:
        await service.call(f"REGISTRY.{method}", *arguments)
    assert refused.value.code == "INVALID_ARGS"


@pytest.mark.parametrize(
    ("method", "more"),
    [("register_user", ["s1"]), ("list_sessions", []), ("get_user", []), ("issue_ticket", []), ("sync", [])],
)
async def test_a_refused_user_is_named_as_the_argument_is(service: Service, method: str, more: list[str]) -> None:
    with pytest.raises(CallFailed) as refused:
        await service.call(f"REGISTRY.{method}", "u/1", *more)
    assert refused.value.message.startswith("user_id must match"), method


async def commands_to_unregister(registry: Registry, connections: Connections, session_id: str) -> dict[str, int]:
    """Commands by name, those of scripts included."""
    await connections.commands.config_resetstat()
    await registry.unregister_session(session_id)
    stats = await connections.commands.info("commandstats")
    calls = {name.removeprefix("cmdstat_"): figures["calls"] for name, figures in stats.items()}
    return {name: count for name, count in calls.items() if not name.startswith(("info", "config"))}


async def test_unregistering_costs_the_same_among_a_thousand_sessions(connections: Connections, log: Log) -> None:
    settings = load(Settings, {})
    unused: Any = None
    registry = Registry()
    # Not entered: no sweeper of its own, whose commands would be counted too.
    presence = Presence(settings, connections, log.telemetry)
    registry.host = Host(
        settings=settings, environ={}, telemetry=log.telemetry, connections=connections, bus=unused,
        presence=presence, listeners=unused, tickets=unused, resources=unused,
    )  # fmt: skip
    for session in ("tab", "phone", "tablet", "watch"):
        await registry.register_user("u0", session)
    await registry.unregister_session("watch")  # the server knows the scripts from here on
    among_few = await commands_to_unregister(registry, connections, "tab")
    for number in range(1_000):
        await registry.register_user(f"u{number // 50}", f"s{number}")
    among_many = await commands_to_unregister(registry, connections, "phone")
    assert among_few == among_many
    assert sum(among_many.values()) < 20
    assert not among_many.keys() & {"keys", "scan", "hgetall", "smembers", "zscan"}


# -- listeners


async def test_sync_publishes_what_the_listeners_snapshots_say(service: Service) -> None:
    async with service.subscribed("user:u1") as heard:
        assert await service.call("REGISTRY.sync", "u1") == {"user_id": "u1", "events": 1, "failed": []}
        assert (await heard.next()).type == "notif.sync"


async def test_the_status_of_a_listener(service: Service, eventually: Eventually) -> None:
    status = await service.call("REGISTRY.check_listener_status", "u1", "things")
    assert status == {"user_id": "u1", "listener_type": "things", "active": False, "online": False}
    await service.call("REGISTRY.register_user", "u1", "s1")

    async def look() -> dict[str, Any]:
        found: dict[str, Any] = await service.call("REGISTRY.check_listener_status", "u1", "things")
        return found

    assert (await eventually(look, lambda status: status["active"]))["online"] is True
    assert not (await service.call("REGISTRY.check_listener_status", "u1", "unheard-of"))["active"]


async def test_a_chat_thread_is_synced_and_looked_up_by_its_name(service: Service, eventually: Eventually) -> None:
    thread = {"space_code": "acme", "thread_key": "-N1"}
    async with service.subscribed("chat:u1:acme:-N1") as heard, service.subscribed("user:u1") as own:
        named = await service.call("REGISTRY.sync", "u1", mode="chats", **thread)
        assert named == {"user_id": "u1", "events": 1, "failed": []}
        assert (await heard.next()).payload == {"mode": "chats"}
        assert (await service.call("REGISTRY.sync", "u1"))["events"] == 1
        assert (await own.next()).type == "notif.sync"
    status = await service.call("REGISTRY.check_listener_status", "u1", "talk", **thread)
    assert status == {"user_id": "u1", "listener_type": "talk", "active": False, "online": False}
    async with service.opened("u1", "acme", "-N1") as opened:
        assert (await opened.next("chat.sync")).payload == {"mode": "auto"}

        async def look() -> bool:
            found = await service.call("REGISTRY.check_listener_status", "u1", "talk", **thread)
            return bool(found["active"])

        await eventually(look, bool)
        assert (await service.call("REGISTRY.sync", "u1"))["events"] == 2
        other = await service.call("REGISTRY.check_listener_status", "u1", "talk", "acme", "-N2")
        assert not other["active"]
    for wrong in (["u1", "talk"], ["u1", "talk", "acme"], ["u1", "things", None, "-N1"], ["u1", "talk", "a:b", "-N1"]):
        with pytest.raises(CallFailed) as refused:
            await service.call("REGISTRY.check_listener_status", *wrong)
        assert refused.value.code == "INVALID_ARGS"


async def test_every_replica_knows_the_status_of_a_listener(own_valkey: ValkeyServer, eventually: Eventually) -> None:
    async with AsyncExitStack() as stack:
        one, two = [
            await stack.enter_async_context(
                running(callboard_registry, ThingsPlugin(), environ={**on(own_valkey), "LISTENERS_REPLICA": name})
            )
            for name in ("one", "two")
        ]
        await one.call("REGISTRY.register_user", "u1", "s1")

        async def look() -> list[bool]:
            return [
                (await replica.call("REGISTRY.check_listener_status", "u1", listener))["active"]
                for replica in (one, two)
                for listener in ("things", "things.things")
            ]

        await eventually(look, all)
        here = [replica.callboard.listeners.is_active("u1", "things") for replica in (one, two)]
        assert sorted(here) == [False, True]  # one of the answers was about the other replica


# -- tickets


async def test_a_ticket_is_good_for_its_user_once(service: Service) -> None:
    answer = await service.call("REGISTRY.issue_ticket", "u1")
    assert answer["ttl_s"] == 60
    assert await service.callboard.host.tickets.redeem(answer["ticket"]) == "u1"
    with pytest.raises(Unauthenticated):
        await service.callboard.host.tickets.redeem(answer["ticket"])


async def test_a_ticket_lies_nowhere(service: Service) -> None:
    async def keyed(method: str, *args: Any) -> bytes:
        call = Call(method=method, args=msgspec.Raw(encode(args)), user_id="u1", idempotency_key="k1")
        answer = await service.callboard.router.call(call, Credential("test", None))
        return bytes(answer.reply.data)  # type: ignore[arg-type]

    one, two = await keyed("REGISTRY.issue_ticket", "u1"), await keyed("REGISTRY.issue_ticket", "u1")
    assert one != two
    await keyed("REGISTRY.register_user", "u1", "a-session-in-a-record")
    dump = b"".join([value async for value in everything(service.callboard.connections)])
    assert b"heartbeat_interval_seconds" in dump  # a write's answer is found there
    assert msgspec.json.decode(one)["ticket"].encode() not in dump


async def everything(connections: Connections) -> AsyncIterator[bytes]:
    redis: Any = connections.commands
    async for key in redis.scan_iter(count=1_000):
        kind = await redis.type(key)
        if kind == b"string":
            yield await redis.get(key) or b""
        elif kind == b"hash":
            for value in await redis.hvals(key):
                yield value


# -- the mirror


async def test_transitions_are_mirrored(
    own_valkey: ValkeyServer,
    firestore_address: str,
    firestore_project: str,
    firestore: AsyncClient,
    eventually: Eventually,
) -> None:
    environ = {
        **on(own_valkey), "FIRESTORE_EMULATOR_HOST": firestore_address, "GOOGLE_PROJECT_ID": firestore_project,
        "LISTENERS_REPLICA": "replica-1",
    }  # fmt: skip

    async def look() -> dict[str, Any]:
        return (await firestore.document("listeners_registry/u1").get()).to_dict() or {}

    async with running(callboard_registry, environ=environ) as service:
        await service.call("REGISTRY.register_user", "u1", "s1", None, ["c1"])
        online = await eventually(look, lambda found: found.get("status") == "online")
        assert (online["authorized_companies_ids"], online["ttl_seconds"]) == (["c1"], 90)
        assert online["instance_id"] == "replica-1"
        await service.call("REGISTRY.register_user", "u1", "s2")
        await service.call("REGISTRY.unregister_session", "s1")
        assert (await look())["status"] == "online"
        await service.call("REGISTRY.unregister_session", "s2")
        offline = await eventually(look, lambda found: found["status"] == "offline")
        assert offline["heartbeat_at"] > online["heartbeat_at"]
        assert (await registry_of(service).health())["mirror"]["status"] == "ok"


async def test_a_firestore_that_is_down_fails_no_call(own_valkey: ValkeyServer, eventually: Eventually) -> None:
    async with FirestoreProcess() as firestore:
        environ = {**on(own_valkey), "FIRESTORE_EMULATOR_HOST": firestore.address, "GOOGLE_PROJECT_ID": "test"}
        async with running(callboard_registry, environ=environ) as service:
            await firestore.kill()
            assert (await service.call("REGISTRY.register_user", "u1", "s1"))["came_online"] is True
            assert (await service.call("REGISTRY.unregister_session", "s1"))["user_id"] == "u1"
            registry = registry_of(service)

            async def look() -> dict[str, Any]:
                mirror: dict[str, Any] = (await registry.health())["mirror"]
                return mirror

            failing = await eventually(look, lambda mirror: mirror["status"] == "failing")
            assert failing["pending"] == 1
            # The control: a write within the call would have failed it.
            store = await registry._store()
            assert store is not None
            with pytest.raises(CallError):
                await store.write([Entry("u1", True)])


async def test_without_a_firestore_there_is_no_mirror(service: Service) -> None:
    health = await registry_of(service).health()
    assert health == {"status": "ok", "mirror": {"status": "off", "reason": "no Firebase is configured"}}


async def test_without_callboard_firebase_there_is_no_mirror(
    own_valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "callboard_firebase", None)  # what makes an import fail
    async with running(callboard_registry, environ=on(own_valkey)) as service:
        health = await registry_of(service).health()
        assert health["mirror"] == {"status": "off", "reason": "callboard-firebase is not installed"}
        assert (await service.call("REGISTRY.register_user", "u1", "s1"))["came_online"] is True


async def test_a_firestore_that_cannot_be_set_up_costs_the_mirror_alone(own_valkey: ValkeyServer) -> None:
    environ = {**on(own_valkey), "FIREBASE_ADMIN_JSON": "/no/such/file"}
    async with running(callboard_registry, environ=environ) as service:
        mirror = (await registry_of(service).health())["mirror"]
        assert mirror["status"] == "off"
        assert "FIREBASE_ADMIN_JSON" in mirror["reason"]
        assert (await service.call("REGISTRY.register_user", "u1", "s1"))["came_online"] is True
