"""Verifiers of ID tokens that plugins bring: found, opened, asked about again at each heartbeat."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Annotated, Any, ClassVar, Self

import msgspec
import pytest
from support import Recorded
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from callboard import ConfigurationError, Help, Service, hookimpl, host, method, variable
from callboard.errors import Unauthenticated, Unavailable
from callboard.gateway import admission, reviews
from callboard.identity import TokenVerifier, VerifiedToken
from callboard.telemetry import Telemetry
from callboard.testing import CallFailed, serving
from callboard.testing import Service as Running
from callboard_local import ValkeyServer

pytestmark = pytest.mark.anyio


class Shop(Service):
    namespace = "SHOP"

    @method(effect="read")
    async def open_hours(self) -> int:
        return 8


class PassSettings(msgspec.Struct, frozen=True):
    users: Annotated[tuple[str, ...], Help("who may come in")] = variable("PASS_USERS", default=())


class Passes:
    """Takes a user's name for their token. Its class variables are the world outside."""

    Settings: ClassVar[type[msgspec.Struct]] = PassSettings
    taken_back: ClassVar[set[str]] = set()
    failing: ClassVar[list[Exception]] = []
    asked: ClassVar[list[set[str]]] = []
    entered: ClassVar[list[str]] = []

    def __init__(self, settings: PassSettings) -> None:
        self.settings = settings

    async def __aenter__(self) -> Self:
        self.entered.append("in")
        return self

    async def __aexit__(self, *_: object) -> None:
        self.entered.append("out")

    async def verify(self, token: str) -> VerifiedToken:
        if token not in self.settings.users:
            raise Unauthenticated("Not this one.")
        return VerifiedToken(token, time.time() + 3_600)

    async def revoked(self, tokens: Collection[VerifiedToken]) -> Collection[VerifiedToken]:
        self.asked.append({token.uid for token in tokens})
        if self.failing:
            raise self.failing[0]
        return [token for token in tokens if token.uid in self.taken_back]


class Broken(Passes):
    async def __aenter__(self) -> Self:
        raise ConfigurationError("PASS_KEY is not set")


class Wordy(Passes):
    async def verify(self, token: str) -> VerifiedToken:
        raise Unauthenticated("é" * 500)


class Silent(Passes):
    """Knows `ada`; about others, and about those who are in, it never says anything."""

    async def verify(self, token: str) -> VerifiedToken:
        if token != "ada":
            await asyncio.Event().wait()
        return await super().verify(token)

    async def revoked(self, tokens: Collection[VerifiedToken]) -> Collection[VerifiedToken]:
        self.asked.append({token.uid for token in tokens})
        await asyncio.Event().wait()
        return ()


class Fails(Passes):
    async def __aexit__(self, *_: object) -> None:
        raise ValueError("s3cret")


class Hangs(Passes):
    async def __aexit__(self, *_: object) -> None:
        await asyncio.Event().wait()


def plugin(name: str, kind: type[TokenVerifier] | None, *services: type[Service]) -> Any:
    class Module:
        __name__ = name

        @staticmethod
        @hookimpl
        def register_services() -> list[type[Service]]:
            return list(services)

        @staticmethod
        @hookimpl
        def register_token_verifier() -> type[TokenVerifier] | None:
            return kind

    return Module()


@asynccontextmanager
async def service_with(
    valkey: ValkeyServer, *plugins: Any, telemetry: Telemetry | None = None, **variables: str
) -> AsyncIterator[Running]:
    for state in (Passes.taken_back, Passes.failing, Passes.asked, Passes.entered):
        state.clear()
    environ = {
        "LISTENERS_REDIS_HOST": "127.0.0.1", "LISTENERS_REDIS_PORT": str(valkey.port),
        "LISTENERS_HEARTBEAT_INTERVAL": "1", "PASS_USERS": "ada,bob", **variables,
    }  # fmt: skip
    async with serving(*plugins, environ=environ, telemetry=telemetry) as running:
        yield running


@asynccontextmanager
async def shown(service: Running, uid: str) -> AsyncIterator[ClientConnection]:
    async with connect(f"{service.url.replace('http', 'ws')}/ws?uid={uid}", proxy=None) as socket:
        await socket.send(json.dumps({"type": "auth.firebase_token", "payload": {"token": uid}}))
        socket.first = json.loads(await asyncio.wait_for(socket.recv(), 20))["type"]  # type: ignore[attr-defined]
        yield socket


async def closed(socket: ClientConnection) -> int:
    with pytest.raises(ConnectionClosed) as caught:
        await asyncio.wait_for(socket.recv(), 20)
    assert caught.value.rcvd is not None
    return caught.value.rcvd.code


async def asked_again(uids: set[str]) -> None:
    seen = len(Passes.asked)
    async with asyncio.timeout(20):
        while uids not in Passes.asked[seen:]:
            await asyncio.sleep(0.01)


async def test_a_plugins_verifier_lets_in_and_looks_again(valkey_server: ValkeyServer) -> None:
    both = [plugin("one", Passes), plugin("two", None), plugin("three", Passes)]
    async with service_with(valkey_server, *both) as service:
        async with shown(service, "eve") as eve:
            assert (eve.first, await closed(eve)) == ("auth.login_error", 3500)  # type: ignore[attr-defined]
        async with shown(service, "ada") as ada, shown(service, "bob") as bob:
            await asked_again({"ada", "bob"})
            for failure in (Unavailable(), ValueError("s3cret")):
                Passes.failing[:] = [failure]
                await asked_again({"ada", "bob"})
            Passes.failing.clear()
            Passes.taken_back.add("bob")
            assert await closed(bob) == 3500
            await asked_again({"ada"})
            assert await (await ada.ping()) >= 0
        seen = len(Passes.asked)
    assert all(uids == {"ada"} for uids in Passes.asked[seen:])
    assert Passes.entered == ["in", "out"]


async def test_a_verifier_that_never_answers_keeps_nobody_waiting(
    valkey_server: ValkeyServer, recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "_VERIFY_TIMEOUT_S", 0.1)
    monkeypatch.setattr(reviews, "_TIMEOUT_S", 0.1)
    async with service_with(valkey_server, plugin("one", Silent), telemetry=recorded.telemetry) as service:
        async with shown(service, "bob") as bob:
            assert (bob.first, await closed(bob)) == ("auth.login_error", 3011)  # type: ignore[attr-defined]
        async with shown(service, "ada") as ada:
            for _ in range(2):
                await asked_again({"ada"})
            assert await (await ada.ping()) >= 0
    assert recorded.lines("id_tokens_unchecked")
    assert not recorded.lines("task_failed")


async def test_a_reason_of_any_length_reaches_the_client(valkey_server: ValkeyServer) -> None:
    async with service_with(valkey_server, plugin("one", Wordy)) as service, shown(service, "ada") as ada:
        assert (ada.first, await closed(ada)) == ("auth.login_error", 3500)  # type: ignore[attr-defined]
        assert ada.close_reason == "é" * 61


async def test_without_a_verifier_no_token_is_taken(valkey_server: ValkeyServer) -> None:
    async with service_with(valkey_server, plugin("one", None)) as service, shown(service, "ada") as ada:
        assert (ada.first, await closed(ada)) == ("auth.login_error", 3500)  # type: ignore[attr-defined]


async def test_two_verifiers_are_a_fatal_clash_that_names_both(valkey_server: ValkeyServer) -> None:
    with pytest.raises(ConfigurationError, match="ID tokens are checked by one and by two"):
        async with service_with(valkey_server, plugin("one", Passes), plugin("two", Broken)):
            raise AssertionError("it started")


async def test_a_verifier_that_cannot_open_puts_its_plugin_aside(valkey_server: ValkeyServer) -> None:
    broken, well = plugin("broken", Broken, Shop), plugin("well", None, type("Well", (Shop,), {"namespace": "WELL"}))
    async with service_with(valkey_server, broken, well) as service:
        assert await service.call("WELL.open_hours") == 8
        with pytest.raises(CallFailed, match="UNAVAILABLE"):
            await service.call("SHOP.open_hours")
        (aside, _) = service.callboard.plugins.all
        assert aside.error == "it cannot check ID tokens: ConfigurationError: PASS_KEY is not set"
        async with shown(service, "ada") as ada:
            assert (ada.first, await closed(ada)) == ("auth.login_error", 3500)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("kind", "failure"), [(Fails, "ValueError"), (Hangs, "TimeoutError < CancelledError")])
async def test_a_verifier_that_does_not_close_keeps_nothing_else_from_closing(
    valkey_server: ValkeyServer,
    recorded: Recorded,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[TokenVerifier],
    failure: str,
) -> None:
    monkeypatch.setattr(host, "CLOSE_TIMEOUT_S", 0.1)
    async with (
        asyncio.timeout(20),
        service_with(valkey_server, plugin("one", kind), telemetry=recorded.telemetry) as service,
    ):
        assert service.callboard.bus.state == "ok"
    assert str(service.callboard.lifecycle.state) == "stopped"
    (told,) = recorded.lines("task_failed")
    assert (told["task"], told["error"]) == (f"close of {kind.__name__}", failure)
    assert "s3cret" not in recorded.text
