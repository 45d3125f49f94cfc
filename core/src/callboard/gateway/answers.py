"""Answers over HTTP: one body shape for everything, whatever went wrong and wherever."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Send

from callboard.errors import BodyTooLarge, CallError, Internal, InvalidArgs, NotFound, PermissionDenied, Unauthenticated
from callboard.messages import Reply, encode, new_id, trace_id_of
from callboard.telemetry import Telemetry, where_raised

Headers = list[tuple[bytes, bytes]]


async def respond(send: Send, status: int, body: bytes, extra: Headers | None = None) -> None:
    """Send one JSON answer."""
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *(extra or ())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def refuse(send: Send, error: CallError, trace_id: str, extra: Headers | None = None) -> None:
    """Send an error with the HTTP status of its kind, as the gateway does before a call reaches the router."""
    await respond(send, error.http_status, encode(Reply.failure(error, trace_id)), [*headers_of(error), *(extra or ())])


def headers_of(error: CallError) -> Headers:
    if isinstance(error, Unauthenticated):
        return [(b"www-authenticate", b"Bearer")]
    if error.http_status in (429, 503) and error.retry_after_ms:
        return [(b"retry-after", b"%d" % math.ceil(error.retry_after_ms / 1000))]
    return []


def internal(telemetry: Telemetry, exc: BaseException, trace_id: str) -> Internal:
    """What the wire may know of an unexpected exception: an id; the log has the rest under it."""
    log_id = new_id()[:16]
    telemetry.log.error("rpc_error", code=Internal.code, log_id=log_id, trace_id=trace_id, **where_raised(exc))
    return Internal(details={"log_id": log_id})


def exception_handlers(telemetry: Telemetry) -> Mapping[Any, Any]:
    """Starlette's `exception_handlers`: unknown paths and methods, and whatever a plugin's own route lets out."""

    def trace_id(request: Request) -> str:
        return trace_id_of(request.headers.get("traceparent")) or new_id()

    def answer(request: Request, status: int, error: CallError, headers: Mapping[str, str] | None = None) -> Response:
        body = b"" if request.method == "HEAD" else encode(Reply.failure(error, trace_id(request)))
        given = {name.decode(): value.decode() for name, value in headers_of(error)}
        return Response(body, status, {**given, **(headers or {})}, media_type="application/json")

    async def http_exception(request: Request, exc: Exception) -> Response:
        assert isinstance(exc, HTTPException)  # noqa: S101 - Starlette looks handlers up by type
        error = _BY_STATUS.get(exc.status_code, InvalidArgs if exc.status_code < 500 else Internal)()
        if exc.status_code == 404:
            error = NotFound("There is nothing at this path.")
        elif exc.status_code == 405:
            error = InvalidArgs("This path does not answer to this HTTP method.")
        return answer(request, exc.status_code, error, exc.headers)

    async def call_error(request: Request, exc: Exception) -> Response:
        assert isinstance(exc, CallError)  # noqa: S101
        return answer(request, exc.http_status, exc)

    async def unexpected(request: Request, exc: Exception) -> Response:
        return answer(request, 500, internal(telemetry, exc, trace_id(request)))

    return {HTTPException: http_exception, CallError: call_error, Exception: unexpected}


_BY_STATUS: Mapping[int, type[CallError]] = {401: Unauthenticated, 403: PermissionDenied, 413: BodyTooLarge}
