"""One open WebSocket: a reader, a writer, one that keeps it synced, and how it ends.

The writer is the only one that sends. The first it sends of a listener's events is that listener's sync, as soon as it
is read; what the bus brings meanwhile waits in the outbox. The same after a gap: the next thing written is a sync.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec

from callboard.errors import Unavailable
from callboard.events.hub import Hub
from callboard.events.outbox import MAX_AGE_S, MAX_BYTES, Frame, Outbox, timestamp
from callboard.gateway.closing import CloseCode, Gone, Refused
from callboard.gateway.socket import Socket
from callboard.messages import Event
from callboard.service import Thread
from callboard.telemetry import Telemetry, where_raised

if TYPE_CHECKING:
    from callboard.fleet.listeners import Listeners

_FLUSH_TIMEOUT_S = 1.0
_MAX_FRAMES_PER_S = 100
_TURN_S = 0.5
_PONG = '{"type":"pong"}'


class _Incoming(msgspec.Struct):
    type: str = ""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What one socket is granted. `outbox_*`: how far it may lag behind."""

    outbox_bytes: int = MAX_BYTES
    outbox_age_s: float = MAX_AGE_S
    stuck_after_s: float = 5.0
    """The server has been closing the connection for this long: it is dropped."""
    resync_backoff_s: tuple[float, float] = (0.5, 30.0)
    """First and longest wait before a failed snapshot is read again."""


class Connection:
    """A socket that was let in. `run` serves it, `close` and `tend` may be called meanwhile."""

    def __init__(
        self,
        socket: Socket,
        uid: str,
        hub: Hub,
        listeners: Listeners,
        telemetry: Telemetry,
        limits: Limits,
        *,
        resync_delay_s: Callable[[], float],
        thread: Thread | None = None,
        expires_in_s: float | None = None,
        ends_in_s: float = math.inf,
    ) -> None:
        """`resync_delay_s` spreads the snapshots that all sockets need after a gap. `thread`: the one it has open.

        `expires_in_s`: what is left of its credential; `ends_in_s`: after this it is too old, whatever its credential.
        """
        self.uid = uid
        self._thread = thread
        self._outbox = Outbox(uid, self._overflowed, max_bytes=limits.outbox_bytes, max_age_s=limits.outbox_age_s)
        self._socket = socket
        self._hub = hub
        self._listeners = listeners
        self._telemetry = telemetry
        self._limits = limits
        self._resync_delay_s = resync_delay_s
        self._expires_at = time.monotonic() + (math.inf if expires_in_s is None else expires_in_s)
        self._ends_at = time.monotonic() + ends_in_s
        self._incoming = msgspec.json.Decoder(_Incoming)
        self._verdict: Refused | None = None
        self._interrupt: asyncio.Timeout | None = None
        self._sending_since: float | None = None
        self._closing_since: float | None = None

    async def run(self, channels: Sequence[str]) -> int:
        """Serve the user's events until either side closes; returns the close code."""
        code = 1006
        tasks: set[asyncio.Task[None]] = set()
        try:
            async with asyncio.timeout(None) as self._interrupt:
                if self._verdict is None:
                    await self._join(channels)
                    tasks |= {self._spawn(self._write(), "websocket writer")}
                    tasks |= {self._spawn(self._keep_synced(), "websocket syncs")}
                    await self._read()
        except Gone as gone:
            code = gone.code
        except Refused as refusal:
            self._verdict = self._verdict or refusal
        except TimeoutError:
            if self._verdict is None:
                raise
        finally:
            self._interrupt = None
            await _end(tasks)
            if self._verdict is not None:
                code = self._verdict.code
                await self._take_leave(self._verdict)
            self._hub.count_lost(self._outbox.empty(), "closed")
            await self._hub.leave(self._outbox)
        return int(code)

    def close(self, code: CloseCode, reason: str | None = None) -> None:
        """Have the socket closed, soon and whatever the client does; the first code given counts."""
        if self._verdict is None:
            self._verdict = Refused(code, reason)
            if self._interrupt is not None:
                self._interrupt.reschedule(0)

    def tend(self, now: float) -> None:
        """Look after the socket, every second or so: too slow, expired, or stuck in the server's own closing."""
        late = self._sending_since is not None and now - self._sending_since > self._limits.outbox_age_s
        if late or self._outbox.is_late(now):
            self.close(CloseCode.TOO_SLOW)
        elif now >= self._expires_at:
            self.close(CloseCode.CREDENTIAL_EXPIRED)
        elif now >= self._ends_at:
            self.close(CloseCode.CREDENTIAL_EXPIRED, "The connection is too old.")
        elif self._socket.is_closing:
            self._closing_since = self._closing_since or now
            if now - self._closing_since > self._limits.stuck_after_s:
                self.close(CloseCode.NO_PONG)
                self._socket.abort()

    def abort(self) -> None:
        self._socket.abort()

    # -- in

    async def _join(self, channels: Sequence[str]) -> None:
        try:
            await self._hub.join(self._outbox, channels)
        except Unavailable:
            # Its syncs are read when Redis answers (what the user may see is there), and again once the bus is back.
            self._telemetry.log.warning("ws_without_bus", uid=self._telemetry.user(self.uid))

    async def _read(self) -> None:
        second, frames = 0, 0
        while True:
            text = await self._socket.receive()
            now = int(time.monotonic())
            second, frames = now, frames + 1 if now == second else 1
            if frames > _MAX_FRAMES_PER_S:
                raise Refused(CloseCode.BAD_REQUEST, "Too many frames.")
            if '"ping"' in text and self._is_ping(text):
                self._outbox.push(Frame(_PONG, len(_PONG)), waits=False)

    def _is_ping(self, text: str) -> bool:
        try:
            return self._incoming.decode(text).type == "ping"
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return False

    # -- out

    async def _write(self) -> None:
        while True:
            if (frame := self._outbox.first()) is None:
                await self._outbox.wait()
                continue
            self._sending_since = time.monotonic()
            await self._socket.send(frame.text)
            self._sending_since = None
            self._outbox.pop()

    async def _keep_synced(self) -> None:
        """Have every listener read now, and anew after each gap."""
        await self._outbox.gap()
        while True:
            segments = self._listeners.segments(self._thread)
            self._outbox.begin(segments)
            readers: set[asyncio.Task[None]] = set()
            told: asyncio.Event | None = None
            for name in segments:
                before, told = told, asyncio.Event()
                readers.add(self._spawn(self._sync(name, before, told), "websocket sync"))
            try:
                await self._outbox.gap()
            finally:
                await _end(readers)
            await asyncio.sleep(self._resync_delay_s())

    async def _sync(self, name: str, before: asyncio.Event | None, told: asyncio.Event) -> None:
        """Put one listener's sync into the outbox; try until it is there. `told` is set when it is, or was tried.

        Syncs keep the listeners' order, but none waits long for the one `before` it.
        """
        failures = 0
        while not await self._is_read(name, before):
            told.set()
            failures += 1
            first, longest = self._limits.resync_backoff_s
            await asyncio.sleep(random.uniform(first / 5, min(longest, first * 2 ** min(failures, 10))))  # noqa: S311
            self._outbox.hold(name, self._listeners.segments(self._thread)[name])
        told.set()

    async def _is_read(self, name: str, before: asyncio.Event | None) -> bool:
        try:
            reading = await self._listeners.read_one(self.uid, name, self._thread)
        except Exception as error:  # noqa: BLE001 - Redis is away, say: the socket lives, and its events wait
            uid = self._telemetry.user(self.uid)
            self._telemetry.log.warning(
                "listener_error", listener=name.partition(":")[0], uid=uid, **where_raised(error)
            )
            return False
        if before is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(_TURN_S):
                    await before.wait()
        if reading is None:
            covered = self._outbox.failed(name)
        else:
            covered = self._outbox.synced(name, reading.frames, _read_times(reading.events))
        self._hub.count_lost(covered, "covered")
        return reading is not None

    # -- the end

    def _overflowed(self) -> None:
        self.close(CloseCode.TOO_SLOW)

    def _spawn(self, work: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        # When the client has left, the reader hears of it, or `tend` sees that the server cannot get rid of it.
        if error is not None and not isinstance(error, Gone):
            self._telemetry.log.error("task_died", task=task.get_name(), **where_raised(error))
            self.close(CloseCode.UNAVAILABLE)

    async def _take_leave(self, verdict: Refused) -> None:
        if verdict.code is CloseCode.SHUTTING_DOWN:
            try:
                async with asyncio.timeout(_FLUSH_TIMEOUT_S):
                    while (frame := self._outbox.first()) is not None:
                        await self._socket.send(frame.text)
                        self._outbox.pop()
            except (TimeoutError, Gone):
                pass  # what is left is counted as lost
        await self._socket.close(verdict.code, verdict.reason)


async def _end(tasks: set[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)


def _read_times(events: Sequence[Event]) -> dict[str, datetime]:
    """When the state in these syncs was read, by first type segment: the earliest, where several have one."""
    times: dict[str, datetime] = {}
    for event in events:
        read_at = timestamp(event.as_of)
        if read_at is not None:
            segment = event.type.partition(".")[0]
            times[segment] = min(read_at, times.get(segment, read_at))
    return times
