"""The plugin contract: six hooks, synchronous, each called once at start. What they return may be asynchronous.

    # in the package named by the entry point
    @hookimpl
    def register_services(settings): return [VectorDatabase]

Arguments are positional names without defaults; leave out those you do not need.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import pluggy

from callboard.service import Service
from callboard.settings import Settings

if TYPE_CHECKING:
    import click
    from starlette.routing import BaseRoute

    from callboard.host import Host
    from callboard.identity import TokenVerifier
    from callboard.rpc.router import Invocation

PROJECT = "callboard"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

Next: TypeAlias = "Callable[[Invocation], Awaitable[Any]]"
Interceptor: TypeAlias = "Callable[[Invocation, Next], Awaitable[Any]]"
HealthCheck: TypeAlias = Callable[[], Awaitable[dict[str, Any]]]


@hookspec
def register_services(settings: Settings) -> Sequence[type[Service]]:  # type: ignore[empty-body]
    """The namespaces of this plugin, as classes; each is built and opened once per app."""


@hookspec
def register_interceptors(settings: Settings) -> Sequence[Interceptor]:  # type: ignore[empty-body]
    """Functions `async (invocation, next)` around every method of every namespace: await `next(invocation)` and return.

    They run in the plugins' alphabetical order, the first one outermost, unless one carries a number `order`
    (lower is further out; 0 when absent).
    """


@hookspec
def register_routes(settings: Settings, host: Host) -> Sequence[BaseRoute]:  # type: ignore[empty-body]
    """Starlette routes of this plugin, beside the service's own; a path that exists already is a fatal clash."""


@hookspec
def register_health_checks(settings: Settings, host: Host) -> dict[str, HealthCheck]:  # type: ignore[empty-body]
    """Checks of external services by name, shown in `/debug`; each is an async function, run with a time-out."""


@hookspec
def register_token_verifier(settings: Settings) -> type[TokenVerifier] | None:
    """The class that checks ID tokens on `/ws`, or None. An app has one: plugins may name the same class, and two
    different ones are a fatal clash."""


@hookspec
def register_commands(settings: Settings) -> Sequence[click.Command]:  # type: ignore[empty-body]
    """Sub-commands for the command line."""
