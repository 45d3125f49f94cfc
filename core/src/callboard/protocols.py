"""uvicorn's two protocols, with the bounds they lack: what a peer may send before it has said who it is.

uvicorn waits for ever for a request's head or body, takes heads of any size, and answers frames as fast as they come.
Here a head has 10 s, 64 KiB and 128 fields, a body 60 s, and a WebSocket 500 frames a second. What is left of a request
that was refused before it had come whole has as much as a head; then the connection ends.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState

from callboard.errors import BadRequest, CallError, HeadTooLarge, RequestTooSlow
from callboard.gateway.closing import CloseCode
from callboard.messages import Reply, encode, new_id

HEAD_TIMEOUT_S = 10.0
BODY_TIMEOUT_S = 60.0
"""`/rpc` itself is stricter."""
MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 128
MAX_PIPELINED = 16
MAX_FRAMES_PER_S = 500
MAX_FRAGMENTS = 1_024
_LINGER_S = 5.0
_SLICE_BYTES = 4_096


class Peers(ServerState):
    """The open connections of a server, and since when each has kept it waiting, the longest first."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.heads: dict[HttpProtocol, float] = {}
        """A head is expected: a new connection, or one that has begun its next request."""
        self.bodies: dict[HttpProtocol, float] = {}
        self.idle: dict[HttpProtocol, float] = {}
        """Kept alive between two requests; uvicorn's own timer ends it."""

    def make_room(self, newcomer: HttpProtocol) -> None:
        """Beyond `most` connections, drop the one that has shown nothing for longest; the newcomer when all work."""
        if len(self.connections) > self.most:
            longest = next(iter(self.heads))
            (next(iter(self.idle), newcomer) if longest is newcomer else longest).drop()

    def forget(self, connection: HttpProtocol) -> None:
        for waiting in (self.heads, self.bodies, self.idle):
            waiting.pop(connection, None)

    def tend(self, now: float) -> None:
        """End what has taken too long; once a second or so."""
        for waiting, timeout_s in ((self.heads, HEAD_TIMEOUT_S), (self.bodies, BODY_TIMEOUT_S)):
            late = []
            for connection, since in waiting.items():
                if now - since <= timeout_s:
                    break
                late.append(connection)
            for connection in late:
                connection.expire()


class HttpProtocol(HttpToolsProtocol):
    """HTTP/1.1 over one connection."""

    server_state: Peers

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = False
        self._in_rest = False
        self._is_over = False
        self._unused_bytes = 0
        self._head_bytes = 0
        self._refusal: CallError | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.server_state.heads[self] = self.loop.time()
        self.server_state.make_room(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_over = True
        self.server_state.forget(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_over:
            return
        self._unused_bytes += len(data)
        super().data_received(data)
        if self._is_over or self.transport.get_protocol() is not self:
            self.server_state.forget(self)
            return
        if self._unused_bytes > MAX_HEAD_BYTES:  # one field, a chunk's extension, a trailer, or nothing but line ends
            if self._in_rest:
                self._end()
                return
            self._refusal = HeadTooLarge()
            self.send_400_response("")
            return
        self._note_what_it_waits_for()

    def _note_what_it_waits_for(self) -> None:
        state, now = self.server_state, self.loop.time()
        state.idle.pop(self, None)
        if self._in_head or self.cycle is None or self.cycle.response_complete:
            state.bodies.pop(self, None)
            if self._in_head or self.timeout_keep_alive_task is None:
                state.heads.setdefault(self, now)
            else:
                state.heads.pop(self, None)
                state.idle[self] = now
            return
        state.heads.pop(self, None)
        if self.cycle.more_body:
            state.bodies.setdefault(self, now)
        else:
            state.bodies.pop(self, None)

    def drop(self) -> None:
        """End the connection now; what was not yet sent is lost."""
        self._is_over = True
        self.server_state.forget(self)
        self.transport.abort()

    def expire(self) -> None:
        """The peer had its time, unless it was the application that did not read."""
        self.server_state.forget(self)
        if self.flow.read_paused:
            self.server_state.bodies[self] = self.loop.time()
            return
        if self._in_rest:
            self.drop()
        elif self._unused_bytes or self._in_head or (self.cycle is not None and not self.cycle.response_complete):
            self._refusal = RequestTooSlow()
            self.send_400_response("")
        else:  # it never said anything
            self.drop()

    # -- the parser's calls

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= MAX_PIPELINED:
            raise ValueError("pipelined without end")
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # a trailer; uvicorn would add it to the head, whose fields were checked
        super().on_header(name, value)
        self._count(len(name) + len(value))
        if len(self.headers) > MAX_HEADERS:
            self._count(MAX_HEAD_BYTES)

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refusal = HeadTooLarge()
            raise self._refusal

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._unused_bytes = 0
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (not hosts and self.parser.get_http_version() != "1.0") or not self.url.isascii():
            raise ValueError("not exactly one Host, or not an URL")
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._in_rest:
            self._unused_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unused_bytes = 0
        super().on_message_complete()
        if self._in_rest:
            self._in_rest = False
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    # -- the end of a request

    def on_response_complete(self) -> None:
        unread = self.cycle.more_body and not self.pipeline
        super().on_response_complete()
        if self.transport.is_closing() or self._is_over:
            return
        if unread:
            self._in_rest = True
            self._unused_bytes = 0
            self._unset_keepalive_if_required()
        self._note_what_it_waits_for()

    def send_400_response(self, msg: str) -> None:
        """Refuse what cannot be parsed. Answers still due are sent before the connection ends; none is mixed up."""
        cycle, error = self.cycle, self._refusal or BadRequest("This is not a request of HTTP/1.1.")
        if self._is_over or self.transport.is_closing():
            return
        if cycle is not None and not cycle.response_complete:
            if not cycle.more_body:
                self._is_over = True
                cycle.keep_alive = False
                return
            if self.pipeline or cycle.response_started:
                self.drop()
                return
            cycle.disconnected = True
            cycle.message_event.set()
        self.transport.write(refusal(error))
        self._end()

    def _end(self) -> None:
        """Send what there is to send, and then nothing; hear the peer out for a moment, or it sees a reset instead."""
        self._is_over = True
        self.server_state.forget(self)
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self.loop.call_later(_LINGER_S, self.transport.abort)
        else:
            self.transport.close()


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """A WebSocket over one connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._second = 0
        self._frames_in_second = 0

    def data_received(self, data: bytes) -> None:
        # In slices: a quarter of a megabyte of empty frames would keep the loop for half a second.
        for start in range(0, len(data), _SLICE_BYTES):
            if self.transport.is_closing():
                return
            super().data_received(data[start : start + _SLICE_BYTES])
            if self.conn.handshake_exc is not None:
                self._refuse_handshake()

    def handle_events(self) -> None:
        second = int(self.loop.time())
        if second != self._second:
            self._second, self._frames_in_second = second, 0
        self._frames_in_second += len(self.conn.events)
        if self._frames_in_second > MAX_FRAMES_PER_S or len(self.frames) > MAX_FRAGMENTS:
            self._fail(CloseCode.BAD_REQUEST, "Too many frames.")
            return
        super().handle_events()

    def handle_ping(self) -> None:
        if self.writable.is_set():
            super().handle_ping()
        else:  # it does not read what it asks for
            self.conn.data_to_send()

    def send_receive_event_to_app(self) -> None:
        if self.curr_msg_data_type == "text" and not self.close_sent:
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError:
                self._fail(1007, "Text is UTF-8.")
                return
        super().send_receive_event_to_app()

    def _fail(self, code: int, reason: str) -> None:
        if not self.close_sent:
            self.frames = []
            self.conn.fail(code, reason)
            self.handle_parser_exception()

    def _refuse_handshake(self) -> None:
        written = b"".join(self.conn.data_to_send())
        if not self.handshake_initiated and not self.transport.is_closing():
            self.transport.write(written or refusal(BadRequest("This is not a request for a WebSocket.")))
            self.handshake_complete = self.close_sent = True
            self.transport.close()


def refusal(error: CallError) -> bytes:
    """A whole response, for a request that no application saw."""
    body = encode(Reply.failure(error, new_id()))
    head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
    return STATUS_LINE[error.http_status] + head + body
