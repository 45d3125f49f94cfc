"""`POST /rpc` and `POST /rpc/{NAMESPACE.method}`: from bytes to a Call, and from a Reply to bytes (CONTRACT, RPC).

What is refused here has an HTTP status of its own and is never run: 401 and 403 before the body is read, 429 and 503
with `Retry-After` when the replica takes no more work, 415, 413 and 400 for the body. Everything the router answers is
200. The Content-Type must be `application/json`; parameters such as a charset are ignored, the body is UTF-8.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from msgspec import Struct
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from callboard.credentials import Credential, Credentials
from callboard.errors import (
    BadRequest,
    BodyTooLarge,
    CallError,
    FailedPrecondition,
    NotJson,
    ResourceExhausted,
    Unavailable,
)
from callboard.events.bus import MAX_EVENT_BYTES
from callboard.gateway.answers import Headers, internal, refuse, respond
from callboard.lifecycle import Lifecycle
from callboard.messages import Call, Reply, decode_call, decode_kwargs, encode, new_id, trace_id_of
from callboard.settings import Settings
from callboard.telemetry import Telemetry

if TYPE_CHECKING:
    from callboard.events.bus import Bus
    from callboard.rpc.router import Router

_BODY_TIMEOUT_S = 30.0
_LARGE_BODY_BYTES = 64 * 1024
T = TypeVar("T")
_REPLAYED: Headers = [(b"idempotent-replayed", b"true")]
_CLOSE: Headers = [(b"connection", b"close")]


class _Gone(Exception):
    """The client went away before its request was complete."""


class _Head(Struct):
    """The headers that matter, as sent."""

    content_type: bytes = b""
    content_length: bytes = b""
    idempotency_key: bytes | None = None
    traceparent: bytes | None = None
    user_id: bytes | None = None
    session_id: bytes | None = None
    timeout_ms: bytes | None = None


_FIELDS = {name.replace("_", "-").encode(): name for name in ("content_type", "content_length", "idempotency_key")}
_FIELDS |= {b"traceparent": "traceparent", b"x-user-id": "user_id", b"x-session-id": "session_id"}
_FIELDS[b"x-timeout-ms"] = "timeout_ms"


def rpc_routes(
    settings: Settings,
    credentials: Credentials,
    router: Router,
    bus: Bus,
    lifecycle: Lifecycle,
    telemetry: Telemetry,
) -> list[BaseRoute]:
    """The two RPC routes."""
    door = _Door(settings, credentials, router, bus, lifecycle, telemetry)
    return [Route("/rpc", door, methods=["POST"]), Route("/rpc/{method}", door, methods=["POST"])]


class _Door:
    def __init__(
        self,
        settings: Settings,
        credentials: Credentials,
        router: Router,
        bus: Bus,
        lifecycle: Lifecycle,
        telemetry: Telemetry,
    ) -> None:
        self._max_body_bytes = settings.max_body_bytes
        self._max_in_flight = settings.max_in_flight
        self._credentials = credentials
        self._router = router
        self._bus = bus
        self._lifecycle = lifecycle
        self._telemetry = telemetry
        self._large_bodies = asyncio.Semaphore(2)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        trace_id = ""
        try:
            head = _read_head(scope)
            traceparent = (head.traceparent or b"").decode("latin-1")
            trace_id = trace_id_of(traceparent) or new_id()
            credential = self._credentials.identify_headers(scope["headers"])
            self._refuse_work()
            body = await self._read_body(head, receive)
            self._refuse_work()  # again: reading may have taken a while
            call = await self._decode(scope, head, body)
            if call.trace_id is None:
                call.trace_id = trace_id
            elif 0 < len(call.trace_id) <= 128:  # check() refuses any other, and then it is not echoed
                trace_id = call.trace_id
            call.check()
            reply, replayed = await self._run(call, credential, traceparent if trace_id_of(traceparent) else None)
        except _Gone:
            return
        except CallError as error:
            await self._refuse(send, error, trace_id)
            return
        except Exception as exc:  # noqa: BLE001 - the last line of defence; it is logged with its traceback
            await self._refuse(send, internal(self._telemetry, exc, trace_id), trace_id)
            return
        answer = encode(reply)
        await respond(send, 200, answer, _REPLAYED if replayed else None)
        if call.reply_to is not None:
            await self._publish(call.reply_to, answer, trace_id)

    async def _run(self, call: Call, credential: Credential, traceparent: str | None) -> tuple[Reply, bool]:
        try:
            answer = await self._router.call(call, credential, traceparent=traceparent)
        except CallError as error:  # the router answers with replies; should one escape, it is an answer all the same
            return Reply.failure(error, call.trace_id), False
        if answer.reply.trace_id is None:
            answer.reply.trace_id = call.trace_id
        return answer.reply, answer.replayed

    def _refuse_work(self) -> None:
        if self._lifecycle.state != "ready":
            raise Unavailable(f"This replica is {self._lifecycle.state}.")
        if self._router.in_flight >= self._max_in_flight:
            raise ResourceExhausted

    async def _refuse(self, send: Send, error: CallError, trace_id: str) -> None:
        self._telemetry.log.info("rpc_error", code=error.code, status=error.http_status, trace_id=trace_id)
        draining = self._lifecycle.state in ("draining", "stopped")
        await refuse(send, error, trace_id, _CLOSE if draining else None)

    async def _read_body(self, head: _Head, receive: Receive) -> bytes:
        """The whole body, or NotJson, BodyTooLarge; not one byte more than the limit is kept."""
        if head.content_type.partition(b";")[0].strip().lower() != b"application/json":
            raise NotJson
        limit = self._max_body_bytes
        if head.content_length.isdigit() and int(head.content_length[:20]) > limit:
            raise BodyTooLarge
        try:
            async with asyncio.timeout(_BODY_TIMEOUT_S):
                return await _read_whole(limit, receive)
        except TimeoutError:
            raise BadRequest(f"The body did not arrive within {_BODY_TIMEOUT_S:.0f} s.") from None

    async def _decode(self, scope: Scope, head: _Head, body: bytes) -> Call:
        method = scope.get("path_params", {}).get("method")
        if method is None:
            call = await self._decoded(decode_call, body)
        else:
            call = Call(
                method=method,
                kwargs=await self._decoded(decode_kwargs, body),
                user_id=_text(head.user_id),
                session_id=_text(head.session_id),
                timeout_ms=_milliseconds(head.timeout_ms),
            )
        if call.idempotency_key is None:
            call.idempotency_key = _text(head.idempotency_key)
        return call

    async def _decoded(self, decode: Callable[[bytes], T], body: bytes) -> T:
        """Decode a body; a large one on a thread, a few at a time: 1 MiB takes a tenth of a second."""
        if len(body) <= _LARGE_BODY_BYTES:
            return decode(body)
        async with self._large_bodies:
            return await asyncio.to_thread(decode, body)

    async def _publish(self, channel: str, answer: bytes, trace_id: str) -> None:
        if len(answer) > MAX_EVENT_BYTES:
            # Not one that invites a retry: the call is done.
            error = FailedPrecondition("The call is done; its answer is too large for a channel.")
            answer = encode(Reply.failure(error, trace_id))
            self._telemetry.log.warning("rpc_error", code=error.code, trace_id=trace_id, stage="reply_to")
        try:
            await self._bus.publish_raw(channel, answer)
        except Exception as exc:  # noqa: BLE001 - the caller has its answer; this copy of it is a convenience
            code = exc.code if isinstance(exc, CallError) else type(exc).__name__
            self._telemetry.log.warning("rpc_error", code=code, trace_id=trace_id, stage="reply_to")


async def _read_whole(limit: int, receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Gone
        part: bytes = message.get("body", b"")
        if len(body) + len(part) > limit:
            raise BodyTooLarge
        if not body and not message.get("more_body", False):
            return part
        body += part
        if not message.get("more_body", False):
            return bytes(body)


def _read_head(scope: Scope) -> _Head:
    head = _Head()
    for name, value in scope["headers"]:
        if (field := _FIELDS.get(name)) is not None:
            setattr(head, field, value)
    return head


def _text(value: bytes | None) -> str | None:
    if value is None:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise BadRequest("A header is not UTF-8.") from None


def _milliseconds(value: bytes | None) -> int | None:
    if value is None:
        return None
    if not value.isdigit() or len(value) > 12:
        raise BadRequest("X-Timeout-Ms must be a positive number of milliseconds.")
    return int(value)
