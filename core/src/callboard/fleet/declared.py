"""A listener as its service declared it: its names, making one, reading its snapshot, reporting what went wrong."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Literal

from callboard.errors import CallError, DeadlineExceeded, Internal
from callboard.events.bus import EventTooLarge
from callboard.messages import Event, utc_now
from callboard.service import ListenerSpec, Service, User
from callboard.telemetry import Telemetry, where_raised


@dataclass(frozen=True, slots=True)
class Declared:
    """A listener as its service declared it. `name` is the one in logs and metrics: `vector_db.changes`."""

    namespace: str
    service: Service
    spec: ListenerSpec

    @property
    def name(self) -> str:
        return f"{self.namespace.lower()}.{self.spec.name}"

    def make(self) -> Any:
        listener = self.spec.factory()
        listener.service = self.service
        return listener

    def is_called(self, name: str) -> bool:
        """Whether `name` means this listener: the whole name, or what follows its namespace."""
        return name in (self.name, self.spec.name)

    def log_name(self, event: str) -> str:
        """`listener_start`, say, after the prefix that its service wants before it."""
        return f"{getattr(type(self.service), 'listener_log_prefix', '')}listener_{event}"


async def read_snapshot(listener: Any, user: User, timeout_s: float) -> list[Event]:
    """The snapshot half; its syncs carry the time before the read, so that no delta the read may lack is dropped."""
    as_of = utc_now()
    async with asyncio.timeout(timeout_s):
        events: list[Event] = await listener.snapshot(user)
    for event in events:
        if event.as_of is None:
            event.as_of = as_of
    return events


def log_failure(
    telemetry: Telemetry,
    declared: Declared,
    uid: str,
    error: Exception,
    *,
    level: Literal["warning", "error"] = "warning",
    **fields: Any,
) -> None:
    """`listener_error`: the kind of error and where it was raised."""
    write = telemetry.log.error if level == "error" or isinstance(error, EventTooLarge) else telemetry.log.warning
    write(
        declared.log_name("error"),
        listener=declared.name,
        uid=telemetry.user(uid),
        code=code_of(error),
        **where_raised(error),
        **fields,
    )


def code_of(error: Exception) -> str:
    if isinstance(error, CallError):
        return error.code
    return DeadlineExceeded.code if isinstance(error, TimeoutError) else Internal.code
