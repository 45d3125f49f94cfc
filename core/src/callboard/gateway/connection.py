"""One open WebSocket: a reader, a writer, and how it ends.

The writer is the only one that sends. Its first frames are the user's syncs; what the bus brings meanwhile waits in the
outbox. The same after a gap: the next thing written is a sync.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec

from callboard.errors import Unavailable
from callboard.events.hub import Hub
from callboard.events.outbox import MAX_AGE_S, MAX_BYTES, Frame, Outbox, timestamp
from callboard.gateway.closing import CloseCode, Gone, Refused
from callboard.gateway.socket import Socket
from callboard.messages import Event, encode
from callboard.telemetry import Telemetry, where_raised

if TYPE_CHECKING:
    from callboard.fleet.listeners import Listeners, Snapshot

_FLUSH_TIMEOUT_S = 1.0
_MAX_FRAMES_PER_S = 100
_SNAPSHOT_TIMEOUT_S = 60.0
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
        reads: asyncio.Semaphore,
        resync_delay_s: Callable[[], float],
        expires_in_s: float | None = None,
    ) -> None:
        """`reads` bounds the snapshots being read at a time; `resync_delay_s` spreads those after a gap."""
        self.uid = uid
        self._outbox = Outbox(uid, self._overflowed, max_bytes=limits.outbox_bytes, max_age_s=limits.outbox_age_s)
        self._socket = socket
        self._hub = hub
        self._listeners = listeners
        self._telemetry = telemetry
        self._limits = limits
        self._reads = reads
        self._resync_delay_s = resync_delay_s
        self._expires_at = None if expires_in_s is None else time.monotonic() + expires_in_s
        self._incoming = msgspec.json.Decoder(_Incoming)
        self._verdict: Refused | None = None
        self._interrupt: asyncio.Timeout | None = None
        self._sending_since: float | None = None
        self._closing_since: float | None = None
        self._resync: asyncio.TimerHandle | None = None
        self._failures = 0
        self._synced = False

    async def run(self, channels: Sequence[str]) -> int:
        """Serve the user's events until either side closes; returns the close code."""
        code = 1006
        writer: asyncio.Task[None] | None = None
        try:
            async with asyncio.timeout(None) as self._interrupt:
                if self._verdict is None:
                    await self._join(channels)
                    writer = asyncio.create_task(self._write(), name="websocket writer")
                    writer.add_done_callback(self._writer_ended)
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
            if writer is not None:
                writer.cancel()
                await asyncio.wait({writer})
            if self._resync is not None:
                self._resync.cancel()
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
        elif self._expires_at is not None and now >= self._expires_at:
            self.close(CloseCode.CREDENTIAL_EXPIRED)
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
            # Its first sync can be read without Redis; another follows when the bus is back.
            self._telemetry.log.warning("bus_gap", reason="a socket opened while the bus is down")

    async def _read(self) -> None:
        second, frames = 0, 0
        while True:
            text = await self._socket.receive()
            now = int(time.monotonic())
            second, frames = now, frames + 1 if now == second else 1
            if frames > _MAX_FRAMES_PER_S:
                raise Refused(CloseCode.BAD_REQUEST, "Too many frames.")
            if '"ping"' in text and self._is_ping(text):
                self._outbox.push(Frame(_PONG, len(_PONG)))

    def _is_ping(self, text: str) -> bool:
        try:
            return self._incoming.decode(text).type == "ping"
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return False

    # -- out

    async def _write(self) -> None:
        while True:
            if self._outbox.needs_sync:
                await self._sync()
            elif (frame := self._outbox.first()) is not None:
                await self._send(frame.text)
                self._outbox.pop()
            else:
                await self._outbox.wait()

    async def _send(self, text: str) -> None:
        self._sending_since = time.monotonic()
        await self._socket.send(text)
        self._sending_since = None

    async def _sync(self) -> None:
        """Read the user's state and write it, before anything that waits in the outbox."""
        self._outbox.hold()
        if self._synced:
            await asyncio.sleep(self._resync_delay_s())
            self._outbox.hold()  # what was missed during the wait is in the state that is read now
        snapshot = await self._snapshot()
        for event in snapshot.events:
            await self._send(encode(event).decode())
        self._synced = True
        self._hub.count_lost(self._outbox.release(_read_times(snapshot.events)), "covered")
        if snapshot.failed:  # the others' events need not wait for these
            self._resync = asyncio.get_running_loop().call_later(self._backoff_s(), self._outbox.mark_gap)
        else:
            self._failures = 0

    async def _snapshot(self) -> Snapshot:
        while True:
            try:
                async with self._reads, asyncio.timeout(_SNAPSHOT_TIMEOUT_S):
                    return await self._listeners.read(self.uid)
            except Exception as error:  # noqa: BLE001 - logged; the socket lives, and is wrong until this succeeds
                uid = self._telemetry.user(self.uid)
                self._telemetry.log.warning("listener_error", listener="snapshot", uid=uid, **where_raised(error))
                await asyncio.sleep(self._backoff_s())

    def _backoff_s(self) -> float:
        self._failures += 1
        first, longest = self._limits.resync_backoff_s
        return random.uniform(first / 5, min(longest, first * 2 ** min(self._failures, 10)))  # noqa: S311 - jitter

    # -- the end

    def _overflowed(self) -> None:
        self.close(CloseCode.TOO_SLOW)

    def _writer_ended(self, writer: asyncio.Task[None]) -> None:
        error = None if writer.cancelled() else writer.exception()
        # When the client has left, the reader hears of it, or `tend` sees that the server cannot get rid of it.
        if error is not None and not isinstance(error, Gone):
            self._telemetry.log.error("task_died", task=writer.get_name(), **where_raised(error))
            self.close(CloseCode.UNAVAILABLE)

    async def _take_leave(self, verdict: Refused) -> None:
        if verdict.code is CloseCode.SHUTTING_DOWN and not self._outbox.needs_sync:
            try:
                async with asyncio.timeout(_FLUSH_TIMEOUT_S):
                    while (frame := self._outbox.first()) is not None:
                        await self._socket.send(frame.text)
                        self._outbox.pop()
            except (TimeoutError, Gone):
                pass  # what is left is counted as lost
        await self._socket.close(verdict.code, verdict.reason)


def _read_times(events: Sequence[Event]) -> dict[str, datetime]:
    """When the state in these syncs was read, by first type segment: the earliest, where several have one."""
    times: dict[str, datetime] = {}
    for event in events:
        read_at = timestamp(event.as_of)
        if read_at is not None:
            segment = event.type.partition(".")[0]
            times[segment] = min(read_at, times.get(segment, read_at))
    return times
