from __future__ import annotations

import asyncio
import json
import traceback
from typing import Any, ClassVar

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from support import Recorded

from callboard import ConfigurationError, Event, Service, hookimpl, method
from callboard.app import create_app
from callboard.errors import InvalidArgs
from callboard.hookspecs import Next
from callboard.rpc.router import Invocation
from callboard.settings import Settings, load
from callboard.testing import CallFailed, running, serving
from callboard_local import ValkeyServer

pytestmark = pytest.mark.anyio


class Life(Service):
    """Remembers what happened to it."""

    namespace = "LIFE"
    told: ClassVar[list[str]]

    async def open(self) -> None:
        self.told.append("open")

    async def close(self) -> None:
        self.told.append("close")

    @method
    async def shout(self, uid: str) -> str:
        await self.context.publish(Event(type="life.shout", uid=uid, payload={"loud": True}))
        return uid.upper()


class Broken(Service):
    namespace = "BROKEN"

    async def open(self) -> None:
        raise ConnectionError("postgres://user:s3cret@host")

    @method
    async def work(self) -> None: ...


def plugin(*services: type[Service], name: str = "callboard_sample", **hooks: Any) -> Any:
    class Module:
        __name__ = name

        @hookimpl
        def register_services(self) -> list[type[Service]]:
            return list(services)

    for hook, function in hooks.items():
        setattr(Module, hook, staticmethod(hookimpl(function)))
    return Module()


@pytest.fixture
def environ(valkey_server: ValkeyServer) -> dict[str, str]:
    return {"LISTENERS_REDIS_HOST": "127.0.0.1", "LISTENERS_REDIS_PORT": str(valkey_server.port)}


@pytest.fixture
def life() -> type[Life]:
    return fresh_life()


def fresh_life() -> type[Life]:
    class FreshLife(Life):
        told: ClassVar[list[str]] = []

    return FreshLife


async def test_services_are_opened_called_and_closed(environ: dict[str, str], life: type[Life]) -> None:
    async with running(plugin(life), environ=environ) as service:
        assert await service.call("LIFE.shout", "demo") == "DEMO"
        assert str(service.callboard.lifecycle.state) == "ready"
    assert life.told == ["open", "close"]
    assert str(service.callboard.lifecycle.state) == "stopped"


async def test_an_event_travels_through_redis(environ: dict[str, str], life: type[Life]) -> None:
    async with running(plugin(life), environ=environ) as service, service.subscribed("user:apptest") as channel:
        await service.call("LIFE.shout", "apptest")
        event = await channel.next()
        assert (event.type, event.uid, event.payload) == ("life.shout", "apptest", {"loud": True})
        assert event.id
        assert event.timestamp.endswith("Z")


async def test_a_plugin_that_cannot_open_hurts_itself_only(
    environ: dict[str, str], life: type[Life], recorded: Recorded
) -> None:
    plugins = [plugin(Broken, name="callboard_broken"), plugin(life)]
    async with serving(*plugins, environ=environ, telemetry=recorded.telemetry) as service:
        assert await service.call("LIFE.shout", "demo") == "DEMO"
        with pytest.raises(CallFailed) as caught:
            await service.call("BROKEN.work")
        assert caught.value.code == "UNAVAILABLE"
        async with httpx.AsyncClient(headers={"Authorization": "Bearer test"}) as client:
            debug = (await client.get(f"{service.url}/debug")).json()
    broken, fine = debug["plugins"]
    assert (broken["state"], broken["error"]) == ("quarantined", "BROKEN cannot open: ConnectionError")
    assert fine["state"] == "ready"
    assert "s3cret" not in json.dumps(debug) + recorded.text
    assert recorded.metric("callboard_plugin_up", plugin="broken", version="0") == 0
    assert recorded.metric("callboard_plugin_up", plugin="sample", version="0") == 1


async def test_services_of_a_plugin_that_opened_are_closed_when_a_later_one_fails(
    environ: dict[str, str], life: type[Life]
) -> None:
    async with running(plugin(life, Broken), environ=environ) as service:
        assert life.told == ["open", "close"]
        with pytest.raises(CallFailed, match="UNAVAILABLE"):
            await service.call("LIFE.shout", "demo")


async def test_strict_stops_the_start_and_the_log_says_why(environ: dict[str, str], recorded: Recorded) -> None:
    strict = {**environ, "LISTENERS_STRICT": "true"}
    with pytest.raises(ConfigurationError, match="plugin sample: BROKEN cannot open") as caught:
        async with running(plugin(Broken), environ=strict, telemetry=recorded.telemetry):
            raise AssertionError("it started")
    (line,) = recorded.lines("plugin_quarantined")
    assert (line["plugin"], line["reason"]) == ("sample", "BROKEN cannot open: ConnectionError")
    # The server logs what stopped the start as Python shows it.
    assert "s3cret" not in "".join(traceback.format_exception(caught.value)) + recorded.text


async def test_a_method_that_cannot_be_called_puts_its_plugin_aside(environ: dict[str, str]) -> None:
    class Unclear(Service):
        namespace = "UNCLEAR"

        @method
        async def vague(self, *things: int) -> None: ...

    async with running(plugin(Unclear), environ=environ) as service:
        with pytest.raises(CallFailed, match="UNAVAILABLE"):
            await service.call("UNCLEAR.vague")
        assert "name each parameter" in (service.callboard.plugins.all[0].error or "")


def fail() -> None:
    raise ConnectionError("postgres://user:s3cret@host")


def odd_order() -> list[Any]:
    async def pass_on(invocation: Invocation, following: Next) -> Any:
        return await following(invocation)

    pass_on.order = "first"  # type: ignore[attr-defined]
    return [pass_on]


@pytest.mark.parametrize(
    ("hook", "function"),
    [
        *[(hook, fail) for hook in ("register_interceptors", "register_routes", "register_health_checks")],
        *[(hook, lambda: None) for hook in ("register_interceptors", "register_routes", "register_health_checks")],
        ("register_routes", lambda: ["/hello"]),
        ("register_interceptors", odd_order),
    ],
)
async def test_a_plugin_whose_hook_fails_hurts_itself_only(
    environ: dict[str, str], life: type[Life], hook: str, function: Any
) -> None:
    class Other(Life):
        namespace = "OTHER"
        told: ClassVar[list[str]] = []

    plugins = [plugin(life, name="broken", **{hook: function}), plugin(Other, name="well")]
    async with running(*plugins, environ=environ) as service:
        assert await service.call("OTHER.shout", "demo") == "DEMO"
        with pytest.raises(CallFailed, match="UNAVAILABLE"):
            await service.call("LIFE.shout", "demo")
        broken, _ = service.callboard.plugins.all
    assert broken.state == "quarantined"
    assert (broken.error or "").startswith(f"its hook {hook} failed: ")
    assert life.told == []


def test_a_clash_of_namespaces_is_fatal_and_names_both(environ: dict[str, str], life: type[Life]) -> None:
    settings = load(Settings, {**environ, "LISTENERS_SERVICE_TOKEN": "x"})
    with pytest.raises(ConfigurationError, match="LIFE is declared by one and by two"):
        create_app(settings, [plugin(life, name="one"), plugin(life, name="two")], environ={})


def test_a_clash_of_routes_is_fatal_and_names_both(environ: dict[str, str], life: type[Life]) -> None:
    settings = load(Settings, {**environ, "LISTENERS_SERVICE_TOKEN": "x"})
    taken = plugin(life, name="greedy", register_routes=lambda: [Route("/rpc", lambda request: None)])
    with pytest.raises(ConfigurationError, match="/rpc is declared by the core and by greedy"):
        create_app(settings, [taken], environ={})


def test_it_refuses_to_start_without_a_token(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="LISTENERS_SERVICE_TOKEN"):
        create_app(load(Settings, environ), [], environ={})


async def test_routes_and_interceptors_of_plugins(environ: dict[str, str], life: type[Life]) -> None:
    async def hello(request: Request) -> PlainTextResponse:
        return PlainTextResponse("hello")

    async def refuse(invocation: Invocation, following: Next) -> Any:
        if invocation.arguments.get("uid") == "nobody":
            raise InvalidArgs("nobody is not somebody")
        return await following(invocation)

    extended = plugin(life, register_routes=lambda: [Route("/hello", hello)], register_interceptors=lambda: [refuse])
    async with serving(extended, environ=environ) as service:
        with pytest.raises(CallFailed, match="nobody is not somebody"):
            await service.call("LIFE.shout", "nobody")
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"{service.url}/hello")).text == "hello"


async def test_two_apps_live_in_one_process(environ: dict[str, str]) -> None:
    lives = [fresh_life() for _ in range(2)]
    async with running(plugin(lives[0]), environ=environ) as one:
        async with running(plugin(lives[1]), environ=environ):
            assert lives[1].told == ["open"]
        assert lives[1].told == ["open", "close"]
        assert await one.call("LIFE.shout", "demo") == "DEMO"


async def test_it_starts_without_redis_and_heals(own_valkey: ValkeyServer, life: type[Life]) -> None:
    environ = {"LISTENERS_REDIS_HOST": "127.0.0.1", "LISTENERS_REDIS_PORT": str(own_valkey.port)}
    await own_valkey.kill()
    async with serving(plugin(life), environ=environ) as service, httpx.AsyncClient() as client:
        ready, strict = f"{service.url}/readyz", f"{service.url}/readyz?strict=1"
        assert (await client.get(ready)).status_code == 200
        assert (await client.get(strict)).status_code == 503
        with pytest.raises(CallFailed, match="UNAVAILABLE"):
            await service.call("LIFE.shout", "demo", with_key="k")
        await own_valkey.restart()
        async with asyncio.timeout(20):
            while (await client.get(strict)).status_code != 200:
                await asyncio.sleep(0.05)
        assert await service.call("LIFE.shout", "demo", with_key="k") == "DEMO"


async def test_a_drain_is_not_ready_and_finishes_what_runs(environ: dict[str, str]) -> None:
    gate = asyncio.Event()

    class Slow(Service):
        namespace = "SLOW"

        @method
        async def work(self) -> str:
            await gate.wait()
            return "finished"

    async with serving(plugin(Slow), environ=environ) as service, httpx.AsyncClient() as client:
        headers = {"Authorization": "Bearer test"}
        body = {"method": "SLOW.work"}
        running_call = asyncio.create_task(client.post(f"{service.url}/rpc", json=body, headers=headers))
        while not service.callboard.router.in_flight:
            await asyncio.wait({running_call}, timeout=0.01)
        drain = asyncio.create_task(service.callboard.drain())
        await asyncio.wait({drain}, timeout=0.05)
        assert (await client.get(f"{service.url}/readyz")).status_code == 503
        refused = await client.post(f"{service.url}/rpc", json=body, headers=headers)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "UNAVAILABLE")
        assert refused.headers["retry-after"]
        gate.set()
        assert (await running_call).json()["data"] == "finished"
        await drain
