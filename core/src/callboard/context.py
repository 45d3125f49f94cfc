"""The call at hand: who it is for, how long it may take, and what it publishes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from contextvars import ContextVar
from typing import Any, Protocol

from callboard.messages import Event, event_id


class Publish(Protocol):
    """`Bus.publish`: see there."""

    def __call__(self, event: Event, /, *, specific: tuple[str, ...] = ()) -> Awaitable[None]: ...


class Context:
    """Who a call is for and what it may do; `self.context` inside a method, on the loop or on a thread."""

    def __init__(
        self,
        publish: Publish,
        loop: asyncio.AbstractEventLoop,
        *,
        method: str = "",
        caller: str = "",
        user_id: str | None = None,
        session_id: str | None = None,
        trace_id: str | None = None,
        traceparent: str | None = None,
        deadline: float | None = None,
        record: str | None = None,
    ) -> None:
        self.method = method
        self.caller = caller
        self.user_id = user_id
        self.session_id = session_id
        self.trace_id = trace_id
        self._traceparent = traceparent
        self._deadline = deadline
        self._record = record
        self._published = 0
        self._publish = publish
        self._loop = loop

    def time_left_s(self) -> float | None:
        """Seconds until the call's deadline, never below 0; None outside a call."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    async def publish(self, event: Event, *, specific: tuple[str, ...] = ()) -> None:
        """Send an event on its user's channel; `specific` names the rest of a finer one. Unavailable without Redis."""
        self._number(event)
        await self._publish(event, specific=specific)

    def publish_soon(self, event: Event, *, specific: tuple[str, ...] = ()) -> None:
        """`publish` for sync methods: blocks this thread, not the loop, until the event is sent."""
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is self._loop:
            raise RuntimeError("publish_soon is for sync methods; await publish() here")
        self._number(event)
        asyncio.run_coroutine_threadsafe(self._call_publish(event, specific), self._loop).result(self.time_left_s())

    async def progress(self, progress: Any, *, job_id: str, uid: str | None = None) -> None:
        """Send `service.progress_update` with `{job_id, progress}` to the call's user, or to `uid`."""
        user = uid or self.user_id
        if user is None:
            raise ValueError("progress needs a user: the call has no user_id and no uid was given")
        await self.publish(
            Event(type="service.progress_update", uid=user, payload={"job_id": job_id, "progress": progress})
        )

    async def _call_publish(self, event: Event, specific: tuple[str, ...]) -> None:
        await self._publish(event, specific=specific)

    def _number(self, event: Event) -> None:
        # A keyed call that runs again (retry_safe) publishes the same ids, so that consumers drop the repeats.
        if not event.id and self._record is not None:
            event.id = event_id(self._record, self._published)
            self._published += 1
        if event.traceparent is None:
            event.traceparent = self._traceparent


current_context: ContextVar[Context] = ContextVar("callboard_context")
