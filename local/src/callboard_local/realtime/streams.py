"""One client's event stream: a bounded queue between the writes and a socket."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from .paths import Path
from .queries import Query

_KEEP_ALIVE = b"event: keep-alive\ndata: null\n\n"


class Stream:
    """Events for a client who listens to `path`, perhaps through a query.

    What waits for its socket is bounded: a client that leaves more than `max_pending_bytes` unread loses the stream,
    unless it is a single event.
    """

    def __init__(self, path: Path, query: Query | None, *, export: bool, max_pending_bytes: int) -> None:
        self.path = path
        self.query = query
        self.export = export
        self.dropped = asyncio.Event()
        """Set when the connection has to end at once, in the middle of the response."""
        self._max_pending_bytes = max_pending_bytes
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._news = asyncio.Event()
        self._muted = False
        self._silent = False
        self._ended = False

    def offer(self, message: bytes) -> None:
        """Queue a message. Too many unread ones drop the stream."""
        if self._muted or self._ended or self.dropped.is_set():
            return
        if self._pending and self._pending_bytes + len(message) > self._max_pending_bytes:
            self.drop()
            return
        self._pending.append(message)
        self._pending_bytes += len(message)
        self._news.set()

    def cancel(self, event: str, data: str, *, close: bool) -> None:
        """Send the last event: after it the stream is open and mute, or ends."""
        self.offer(f"event: {event}\ndata: {data}\n\n".encode())
        self._muted = True
        if close:
            self.end()

    def mute(self) -> None:
        """Stay open and send nothing any more, not even keep-alives: a line that is dead without saying so."""
        self._muted = self._silent = True

    def end(self) -> None:
        """End the stream properly, after what is queued."""
        self._ended = True
        self._news.set()

    def drop(self) -> None:
        """End it now: nothing that is queued is sent any more."""
        self._pending.clear()
        self.dropped.set()

    def wake(self) -> None:
        """Make it look at the keep-alive interval again."""
        self._news.set()

    async def chunks(self, keep_alive: "KeepAlive") -> AsyncIterator[bytes]:
        """What to send, as it comes, until the stream is ended."""
        while True:
            try:
                async with asyncio.timeout(keep_alive.interval_s):
                    await self._news.wait()
            except TimeoutError:
                if not self._silent:
                    yield _KEEP_ALIVE
                continue
            self._news.clear()
            if chunk := self.take():
                yield chunk
            if self._ended and not self._pending:
                return

    def take(self) -> bytes:
        """All messages that wait; they wait no longer."""
        chunk = b"".join(self._pending)
        self._pending.clear()
        self._pending_bytes = 0
        return chunk


class KeepAlive:
    """How often an idle stream says that it lives, in seconds; None: never."""

    def __init__(self, interval_s: float | None) -> None:
        self.interval_s = interval_s


def encoded(event: str, path: str, data: Any) -> bytes:
    """An event of the stream, as bytes."""
    content = json.dumps({"path": path, "data": data}, ensure_ascii=False, separators=(",", ":"))
    return f"event: {event}\ndata: {content}\n\n".encode()
