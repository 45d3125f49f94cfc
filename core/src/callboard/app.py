"""The only place that knows everyone: `create_app(settings)` and the life of what it builds.

settings → plugins → router compiled → Redis → services open in order → listeners → probe proved → ready
drain: not ready → sockets told to reconnect → calls finish → listeners released → services close in reverse
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import BaseRoute

from callboard.connections import Connections
from callboard.context import Context
from callboard.credentials import Credentials
from callboard.errors import ConfigurationError
from callboard.events.bus import Bus
from callboard.events.hub import Hub
from callboard.fleet.leases import Leases
from callboard.fleet.listeners import Listeners
from callboard.fleet.members import Members
from callboard.fleet.presence import Presence
from callboard.gateway.answers import exception_handlers
from callboard.gateway.http import rpc_routes
from callboard.gateway.loopback import LoopbackOnly
from callboard.gateway.socket import TransportAccess
from callboard.gateway.tickets import Tickets
from callboard.gateway.websocket import WebSocketGateway
from callboard.health import Health, gather_checks
from callboard.hookspecs import Interceptor
from callboard.host import Host, close_in_time
from callboard.identity import TokenVerifier
from callboard.lifecycle import Lifecycle
from callboard.plugins import Plugin, Plugins, reason_of
from callboard.rpc.idempotency import Idempotency
from callboard.rpc.router import Router
from callboard.settings import Settings, load
from callboard.telemetry import Telemetry
from callboard.version import VERSION

OPEN_TIMEOUT_S = 30.0
PROBE_WAIT_S = 5.0


class Callboard:
    """One service: its parts, built and wired, and the ASGI application in front of them."""

    def __init__(
        self,
        settings: Settings,
        plugins: Sequence[Any] | None = None,
        *,
        environ: Mapping[str, str] | None = None,
        telemetry: Telemetry | None = None,
    ) -> None:
        environ = os.environ if environ is None else environ
        settings.check(environ)
        self.settings = settings
        self.telemetry = telemetry or Telemetry(
            replica=settings.replica_name(), readable=settings.dev, debug=settings.debug
        )
        self.lifecycle = Lifecycle()
        self._let_go = False

        self.plugins = Plugins(settings, environ, self.telemetry)
        if plugins is None:
            self.plugins.discover()
        else:
            self.plugins.use(plugins)
        self.plugins.build_services()

        self.credentials = Credentials(settings)
        self.connections = Connections(settings, self.telemetry)
        self.bus = Bus(settings, self.connections, self.telemetry, self.plugins.channel_prefixes())
        self.hub = Hub(self.bus, self.telemetry)
        self.bus.sink, self.bus.on_gap = self.hub.deliver, self._catch_up
        self.presence = Presence(settings, self.connections, self.telemetry)
        members = Members(settings.replica_name(), self.connections, self.telemetry)
        self.listeners = Listeners(settings, self.telemetry, Leases(self.connections), members, self.presence, self.bus)
        self.idempotency = Idempotency(settings, self.connections, self.telemetry)
        self.router = Router(settings, self.telemetry, self.idempotency, self.bus.publish, self._interceptors())
        tickets = Tickets(settings, self.connections)
        self.websockets = WebSocketGateway(
            settings=settings, credentials=self.credentials, tickets=tickets, hub=self.hub,
            bus=self.bus, presence=self.presence, listeners=self.listeners, lifecycle=self.lifecycle,
            telemetry=self.telemetry,
        )  # fmt: skip
        self._verifiers = self._token_verifiers()
        self._resources = AsyncExitStack()
        self.host = Host(
            settings=settings, environ=environ, telemetry=self.telemetry, connections=self.connections, bus=self.bus,
            presence=self.presence, listeners=self.listeners, tickets=tickets,
            resources=self._resources,
        )  # fmt: skip
        self._compile()
        self.asgi = self._build_asgi()
        for plugin in self.plugins.all:  # by whichever hook it was put aside
            if plugin.state == "quarantined":
                self._silence(plugin)

    def _catch_up(self) -> None:
        """The bus is back after a gap: nobody waits for their next turn."""
        self.hub.gap()
        self.listeners.hurry()
        self.websockets.hurry()

    def _interceptors(self) -> list[Interceptor]:
        given = [
            interceptor
            for _, interceptors in self.plugins.collect("register_interceptors", _in_order, settings=self.settings)
            for interceptor in interceptors
        ]
        return _in_order(given)

    def _token_verifiers(self) -> list[tuple[Plugin, type[TokenVerifier]]]:
        """The class that checks ID tokens, with each plugin that brings it."""
        given = self.plugins.collect("register_token_verifier", settings=self.settings)
        found = [(plugin, kind) for plugin, kind in given if kind is not None]
        for plugin, kind in found[1:]:
            if kind is not found[0][1]:
                raise ConfigurationError(f"ID tokens are checked by {found[0][0].name} and by {plugin.name}")
        return found

    def _compile(self) -> None:
        """Fill the router's table and declare the listeners; a clash of names is fatal, an unusable method is not."""
        for plugin in self.plugins.healthy():
            for service in plugin.services:
                service.host = self.host
                try:
                    self.router.table.add(service, plugin.name)
                    self.listeners.declare(service.namespace, service)
                except TypeError as error:
                    self.plugins.quarantine(plugin, reason_of(error), error)
                    break

    def _silence(self, plugin: Plugin) -> None:
        for namespace in plugin.namespaces():
            self.router.table.quarantine(namespace)
            self.listeners.withdraw(namespace)

    def _build_asgi(self) -> Starlette:
        health = Health(
            self.host, self.lifecycle, self.router, self.plugins, self.credentials,
            gather_checks(self.plugins, self.host),
        )  # fmt: skip
        rpc = rpc_routes(self.settings, self.credentials, self.router, self.bus, self.lifecycle, self.telemetry)
        routes = [*rpc, *self.websockets.routes(), *health.routes()]
        owners = {getattr(route, "path", ""): "the core" for route in routes}
        for plugin, given in self.plugins.collect("register_routes", _routes, settings=self.settings, host=self.host):
            for route in given:
                path = getattr(route, "path", "")
                if path in owners:
                    raise ConfigurationError(f"the path {path} is declared by {owners[path]} and by {plugin.name}")
                owners[path] = plugin.name
                routes.append(route)
        middleware = [Middleware(TransportAccess), *([Middleware(LoopbackOnly)] if self.settings.dev else [])]
        app = Starlette(
            routes=routes, middleware=middleware, exception_handlers=exception_handlers(self.telemetry),
            lifespan=self._lifespan,
        )  # fmt: skip
        app.router.redirect_slashes = False
        app.state.callboard = self
        return app

    # -- life and death

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        log, metrics = self.telemetry.log, self.telemetry.metrics
        log.info("service_start", plugins=[plugin.name for plugin in self.plugins.all])
        self.host.background = Context(self.bus.publish, asyncio.get_running_loop())
        async with AsyncExitStack() as stack:
            stack.callback(log.info, "service_stop")
            stack.callback(self.lifecycle.stopped)
            stack.callback(self.router.table.close)
            await stack.enter_async_context(self.connections)
            await stack.enter_async_context(self.bus)
            await stack.enter_async_context(self.presence)
            await stack.enter_async_context(self.idempotency)
            await stack.enter_async_context(self._resources)
            await self._open_verifier()
            for plugin in self.plugins.healthy():
                await self._open(plugin, stack)
            for plugin in self.plugins.all:
                up = metrics.plugin_up.labels(plugin.name, plugin.version)
                up.set(plugin.state == "ready")
            metrics.build_info.info({"version": VERSION})
            await stack.enter_async_context(self.listeners)
            await stack.enter_async_context(self.websockets)
            stack.push_async_callback(self.drain)
            await stack.enter_async_context(self._loop_lag())
            await self._prove_bus()
            self.lifecycle.ready()
            log.info("service_ready", plugins={p.name: p.state for p in self.plugins.all})
            yield

    async def _open_verifier(self) -> None:
        """Make the verifier and have the sockets use it; if that fails, put aside the plugins that brought it."""
        for plugin, kind in self._verifiers:
            try:
                async with asyncio.timeout(OPEN_TIMEOUT_S):
                    self.websockets.check_tokens_with(await self.host.shared(kind))
            except Exception as error:  # noqa: BLE001 - whatever it is, it is theirs alone
                self.plugins.quarantine(plugin, f"it cannot check ID tokens: {reason_of(error)}", error)
                self._silence(plugin)

    async def _open(self, plugin: Plugin, stack: AsyncExitStack) -> None:
        """Open a plugin's services in order; if one fails, close those that did open and put the plugin aside."""
        async with AsyncExitStack() as opened:
            for service in plugin.services:
                try:
                    async with asyncio.timeout(OPEN_TIMEOUT_S):
                        await service.open()
                except Exception as error:  # noqa: BLE001 - whatever it is, it is that plugin's alone
                    reason = f"{service.namespace} cannot open: {reason_of(error)}"
                    self.plugins.quarantine(plugin, reason, error)
                    self._silence(plugin)
                    return
                opened.push_async_callback(close_in_time, self.telemetry, plugin.name, service.close)
            plugin.state = "ready"
            self.telemetry.log.info("plugin_ready", plugin=plugin.name, version=plugin.version)
            stack.push_async_exit(opened.pop_all())

    async def _prove_bus(self) -> None:
        """Wait a little for the bus's first probe; without Redis the service starts all the same, and heals."""
        until = time.monotonic() + PROBE_WAIT_S
        while self.bus.probed_at is None and time.monotonic() < until:  # noqa: ASYNC110 - once, at start
            await asyncio.sleep(0.02)

    @asynccontextmanager
    async def _loop_lag(self) -> AsyncIterator[None]:
        async def measure() -> None:
            while True:
                due = time.monotonic() + 1
                await asyncio.sleep(1)
                self.telemetry.metrics.event_loop_lag.set(time.monotonic() - due)

        task = asyncio.create_task(measure(), name="loop lag")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def drain(self) -> None:
        """Let go, inside the budget: no new work, sockets reconnect elsewhere, calls finish, leases are released.

        Called at SIGTERM, before the server closes its sockets; a second call does nothing. Once `lifecycle` is hurried
        no call is waited for any more.
        """
        if self._let_go:
            return
        self._let_go = True
        self.lifecycle.drain()
        self.telemetry.log.info("service_drain", calls=self.router.in_flight, sockets=self.websockets.connections)
        budget = self.settings.drain_timeout_s
        await asyncio.gather(self.websockets.drain(), self._drain_calls(budget * 0.6))
        await self.listeners.drain()

    async def _drain_calls(self, patience_s: float) -> None:
        patient = asyncio.create_task(self.router.drain(patience_s), name="drain of calls")
        hurried = asyncio.create_task(self.lifecycle.hurried.wait(), name="drain hurried")
        try:
            await asyncio.wait({patient, hurried}, return_when=asyncio.FIRST_COMPLETED)
            if patient.done():
                await patient
                return
        finally:
            for task in (patient, hurried):
                task.cancel()
            await asyncio.wait({patient, hurried})
        await self.router.drain(0)


def _in_order(interceptors: Iterable[Interceptor]) -> list[Interceptor]:
    return sorted(interceptors, key=lambda interceptor: float(getattr(interceptor, "order", 0)))


def _routes(given: Iterable[BaseRoute]) -> list[BaseRoute]:
    found = list(given)
    for route in found:
        if not isinstance(route, BaseRoute):
            raise TypeError(f"a {type(route).__name__} is no route of Starlette's")
    return found


def create_app(
    settings: Settings | None = None,
    plugins: Sequence[Any] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    telemetry: Telemetry | None = None,
) -> Starlette:
    """The ASGI application of one service.

    `settings` default to the environment's; `plugins` (modules, or objects with hookimpls) replace the installed ones.
    Raises ConfigurationError when the service must not start. Its parts are at `app.state.callboard`.
    """
    environ = os.environ if environ is None else environ
    settings = settings or load(Settings, environ)
    return Callboard(settings, plugins, environ=environ, telemetry=telemetry).asgi
