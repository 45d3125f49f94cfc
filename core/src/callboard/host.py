"""What the core offers to services: `self.host`.

The one object through which a plugin reaches the parts of its app: who is online, the listeners, tickets, and
resources that several plugins share.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

import msgspec

from callboard import settings as _settings
from callboard.settings import Settings
from callboard.telemetry import Telemetry, where_raised

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from callboard.connections import Connections
    from callboard.context import Context
    from callboard.events.bus import Bus
    from callboard.fleet.listeners import Listeners
    from callboard.fleet.presence import Presence
    from callboard.gateway.tickets import Tickets

CLOSE_TIMEOUT_S = 5.0


class SharedResource(AbstractAsyncContextManager["Any"], Protocol):
    """Something several plugins use one of, such as a Firebase app: built from its own settings, then entered."""

    Settings: ClassVar[type[msgspec.Struct]]

    def __init__(self, settings: Any, /) -> None: ...


R = TypeVar("R", bound=SharedResource)


@dataclass(kw_only=True)
class Host:
    """One app, as its services see it."""

    settings: Settings
    environ: Mapping[str, str]
    telemetry: Telemetry
    connections: Connections
    bus: Bus
    presence: Presence
    listeners: Listeners
    tickets: Tickets
    resources: AsyncExitStack
    background: Context = field(init=False)
    """The context of what runs outside a call: it publishes, and belongs to nobody. Set when the app starts."""
    _shared: dict[type, Any] = field(default_factory=dict)
    _opening: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def redis(self) -> Redis:
        """The client for commands: bounded, cluster-aware. Keys of a plugin begin with `callboard:{namespace}:`."""
        return self.connections.commands

    async def shared(self, kind: type[R]) -> R:
        """The app's one instance of `kind`: opened by the first plugin that asks, closed after the last has closed.

        One that fails to close, or takes longer than 5 s, is told of by the log: what comes after it is closed too.
        """
        async with self._opening:
            if kind not in self._shared:
                resource = kind(_settings.load(kind.Settings, self.environ))
                await resource.__aenter__()
                self.resources.push_async_callback(
                    close_in_time, self.telemetry, kind.__qualname__, lambda: resource.__aexit__(None, None, None)
                )
                self._shared[kind] = resource
            opened: R = self._shared[kind]
            return opened


async def close_in_time(telemetry: Telemetry, name: str, close: Callable[[], Awaitable[object]]) -> None:
    """Await `close()`, for a bounded time; the log tells when it fails, since the others still have to be closed."""
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await close()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is theirs alone
        telemetry.log.error("task_failed", task=f"close of {name}", **where_raised(error))
