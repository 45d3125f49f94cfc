"""A listener as its service declared it: its names, making one, reading its snapshot, reporting what went wrong."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from callboard.errors import CallError, DeadlineExceeded, Internal, InvalidArgs
from callboard.events.bus import EventTooLarge
from callboard.messages import Event, utc_now
from callboard.service import ListenerSpec, Service, Thread, User
from callboard.telemetry import Telemetry, where_raised


class Instance(NamedTuple):
    """Which one of a declared listener: whose, and, where there is one per thread, which thread's."""

    uid: str
    name: str
    place: tuple[str, str] | tuple[()] = ()

    @property
    def lease_key(self) -> str:
        return f"callboard:lease:listener:{self.source_name}:{{{self.uid}}}"

    @property
    def source_name(self) -> str:
        """`listener` in its events: one per thread says which, for each has a lease, hence fences, of its own."""
        return ":".join((self.name, *self.place))


@dataclass(frozen=True, slots=True)
class Declared:
    """A listener as its service declared it. `name` is the one in logs and metrics: `vector_db.changes`."""

    namespace: str
    service: Service
    spec: ListenerSpec

    @property
    def name(self) -> str:
        return f"{self.namespace.lower()}.{self.spec.name}"

    @property
    def per_thread(self) -> bool:
        return self.spec.per == "thread"

    def instance(self, uid: str, thread: Thread | None = None) -> Instance:
        return Instance(uid, self.name, thread.place if thread is not None and self.per_thread else ())

    def source_name(self, thread: Thread | None = None) -> str:
        """`Instance.source_name`, whosever it is."""
        return self.instance("", thread).source_name

    def make(self, thread: Thread | None = None) -> Any:
        listener = self.spec.factory()
        listener.service = self.service
        if thread is not None and self.per_thread:
            listener.thread = thread
        return listener

    def address(self, event: Event, thread: Thread | None = None) -> tuple[str, ...]:
        """Write into an event which listener it is of; returns the rest of its channel.

        InvalidArgs for one of a thread that is not named `chat.*`: no socket would hear it.
        """
        event.listener = self.source_name(thread)
        if not self.per_thread:
            return ()
        if not event.type.startswith("chat."):
            raise InvalidArgs("The events of a listener per thread are named chat.*")
        return self.instance(event.uid, thread).place

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


def log_fields(telemetry: Telemetry, declared: Declared, uid: str, thread: Thread | None) -> dict[str, Any]:
    """What a log line says of an instance: the declared name; user and thread as logs may show them."""
    fields = {"listener": declared.name, "uid": telemetry.user(uid)}
    if thread is not None and declared.per_thread:
        fields["thread"] = telemetry.user(":".join(thread.place))
    return fields


def log_failure(
    telemetry: Telemetry,
    declared: Declared,
    uid: str,
    error: Exception,
    *,
    thread: Thread | None = None,
    level: Literal["warning", "error"] = "warning",
    **fields: Any,
) -> None:
    """`listener_error`: the kind of error and where it was raised."""
    write = telemetry.log.error if level == "error" or isinstance(error, EventTooLarge) else telemetry.log.warning
    write(
        declared.log_name("error"),
        **log_fields(telemetry, declared, uid, thread),
        code=code_of(error),
        **where_raised(error),
        **fields,
    )


def code_of(error: Exception) -> str:
    if isinstance(error, CallError):
        return error.code
    return DeadlineExceeded.code if isinstance(error, TimeoutError) else Internal.code
