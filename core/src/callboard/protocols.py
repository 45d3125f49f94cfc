"""uvicorn's two protocols, with the bounds they lack: what a peer may send before it has said who it is.

uvicorn waits for ever for a request's head or body, takes heads of any size, and answers frames as fast as they come.
Here a head has 10 s, 64 KiB and 128 fields, a body 60 s, and a WebSocket 500 frames a second. What is left of a request
that was refused before it had come whole has as much as a head; then the connection ends. A connection ends politely:
who still sends is heard out, up to 16 MiB and for 5 s, for to a peer that is cut off its answer is lost.
"""

from __future__ import annotations

import asyncio
from typing import Any

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
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
_LINGER_BYTES = 16 * 1024 * 1024
_SLICE_BYTES = 4_096


class Peers(ServerState):
    """The open connections of a server."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def make_room(self, newcomer: HttpProtocol) -> None:
        """Beyond `most`, drop who owes a request for longest, then the longest idle; the newcomer when all work.

        A hundredth of them at a time, so that a flood of newcomers does not cost a look at all of them each.
        """
        if len(self.connections) <= self.most:
            return
        waiting = [one for one in self._of_http() if one.is_waiting and one is not newcomer]
        waiting.sort(key=lambda one: (one.is_idle, one.since))
        for one in waiting[: 1 + self.most // 100] or (newcomer,):
            one.drop()

    def tend(self, now: float) -> None:
        """End what has taken too long; once a second or so."""
        for one in self._of_http():
            timeout_s = one.timeout_s
            if timeout_s is not None and now - one.since > timeout_s:
                one.expire()

    def _of_http(self) -> list[HttpProtocol]:
        return [one for one in self.connections if isinstance(one, HttpProtocol)]


class HttpProtocol(HttpToolsProtocol):
    """HTTP/1.1 over one connection. `since`: when what it is waiting for, or doing, began, by the loop's clock."""

    server_state: Peers

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.since = self.loop.time()
        self._in_head = False
        self._in_rest = False
        self._is_over = False
        self._linger: asyncio.TimerHandle | None = None
        self._unused_bytes = 0
        self._head_bytes = 0
        self._refusal: CallError | None = None

    @property
    def is_idle(self) -> bool:
        """Kept alive between two requests; uvicorn's own timer ends it."""
        return not (self._in_head or self._in_rest) and self.timeout_keep_alive_task is not None

    @property
    def is_waiting(self) -> bool:
        """Nothing is being done for it."""
        if self._is_over:
            return self._linger is not None
        return self._all_is_answered

    @property
    def _all_is_answered(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    @property
    def timeout_s(self) -> float | None:
        """How long the peer may take for what it owes; None when it owes nothing, or is not being read."""
        if self._is_over or self.flow.read_paused or self.is_idle:
            return None
        if self._in_head or self.is_waiting:
            return HEAD_TIMEOUT_S
        return BODY_TIMEOUT_S if self.cycle.more_body else None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.server_state.make_room(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_over = True
        if self._linger is not None:
            self._linger.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unused_bytes += len(data)
        if self._is_over:
            if self._unused_bytes > _LINGER_BYTES:
                self.drop()
            return
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            if self._should_upgrade():
                self.handle_websocket_upgrade()
            else:
                self._decline_upgrade(data[upgrade.args[0] :])
        except HttpParserError:
            self.logger.warning("Invalid HTTP request received.")
            self.send_400_response("")
        if self._unused_bytes > MAX_HEAD_BYTES:  # one field, a chunk's extension, a trailer, or nothing but line ends
            if self._in_rest:
                self.end()
            else:
                self._refusal = HeadTooLarge()
                self.send_400_response("")

    def _decline_upgrade(self, rest: bytes) -> None:
        """Read the request again as if it offered no other protocol. httptools takes the body of one that does for the
        next request, which would let a body speak for whoever shares the connection to a proxy.
        """
        head = [self.parser.get_method(), b" ", self.url, b" HTTP/", self.parser.get_http_version().encode(), b"\r\n"]
        for name, value in self.headers:
            if name != b"upgrade":
                head += [name, b": ", value, b"\r\n"]
        self.parser = HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.data_received(b"".join([*head, b"\r\n", rest]))

    def drop(self) -> None:
        """End the connection now; what was not yet sent is lost."""
        self._is_over = True
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        self.connections.discard(self)  # now: others may come before the loop says that it is lost
        self.transport.abort()

    def expire(self) -> None:
        """The peer had its time."""
        if self._in_rest or not (self._unused_bytes or self._in_head or self.cycle):
            self.drop()  # it has its answer, or never said anything
        else:
            self._refusal = RequestTooSlow()
            self.send_400_response("")

    # -- the parser's calls

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= MAX_PIPELINED:
            raise ValueError("pipelined without end")
        self._unset_keepalive_if_required()  # set in the midst of these bytes, by the end of what was left unread
        super().on_message_begin()
        self.since = self.loop.time()
        self._in_head = True
        self._head_bytes = 0

    def on_url(self, url: bytes) -> None:
        self._head_bytes += len(url)
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refusal = HeadTooLarge()
            raise self._refusal
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # a trailer; uvicorn would add it to the head, whose fields were checked
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > MAX_HEAD_BYTES or len(self.headers) >= MAX_HEADERS:
            self._refusal = HeadTooLarge()
            raise self._refusal
        HttpToolsProtocol.on_header(self, name, value)

    def on_headers_complete(self) -> None:
        self.since = self.loop.time()
        self._in_head = False
        self._unused_bytes = 0
        hosts = [name for name, _ in self.headers].count(b"host")
        if hosts > 1 or (not hosts and self.parser.get_http_version() != "1.0") or not self.url.isascii():
            raise ValueError("not exactly one Host, or not an URL")
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT" or (self._should_upgrade() and not self._all_is_answered):
                raise ValueError("not for this service, or not yet")
            if not self._should_upgrade():
                return
        if self.parser.get_http_version() == "1.0":
            self.expect_100_continue = False
        super().on_headers_complete()
        if not self.parser.should_upgrade():
            self.cycle.transport = _WayOut(self.transport)  # type: ignore[assignment]

    def on_body(self, body: bytes) -> None:
        if not self._in_rest:
            self._unused_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unused_bytes = 0
        if self.parser.should_upgrade():
            return
        super().on_message_complete()
        if self._in_rest:
            self._in_rest = False
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    # -- the end of a request

    def close(self) -> None:
        """A request has its answer, and the connection is not to be kept."""
        if self._is_over or self.cycle.more_body or self.pipeline:
            self.end()
        else:
            self.transport.close()

    def on_response_complete(self) -> None:
        if self._linger is not None:
            self.server_state.total_requests += 1
            return
        unread = self.cycle.more_body and not self.pipeline
        super().on_response_complete()
        self.since = self.loop.time()
        if unread and not self._is_over and not self.transport.is_closing():
            self._in_rest = True
            self._unused_bytes = 0
            self._unset_keepalive_if_required()

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
        self.end()

    def end(self) -> None:
        """Send what there is to send, and then nothing; hear the peer out for a moment, or it sees a reset instead."""
        if self._linger is not None or self.transport.is_closing():
            return
        self._is_over = True
        self._unset_keepalive_if_required()
        if not self.transport.can_write_eof():
            self.transport.close()
            return
        self._unused_bytes = 0
        self.flow.resume_reading()
        self.transport.write_eof()
        self._linger = self.loop.call_later(_LINGER_S, self.transport.abort)


class _WayOut:
    """The connection as a request's answer leaves by it: uvicorn closes it where it is to end."""

    __slots__ = ("_transport", "is_closing", "write")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.write = transport.write
        self.is_closing = transport.is_closing

    def close(self) -> None:
        protocol = self._transport.get_protocol()
        if isinstance(protocol, HttpProtocol):
            protocol.close()
        else:
            self._transport.close()


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
