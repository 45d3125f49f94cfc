"""One WebSocket, over ASGI: text frames in and out, and an end that never takes long."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from callboard.gateway.closing import CloseCode, Gone, Refused

MAX_FRAME_BYTES = 64 * 1024
_MAX_REASON_BYTES = 123
_CLOSE_TIMEOUT_S = 1.0
_LINGER_S = 5.0
_TRANSPORT = "callboard.transport"


class TransportAccess:
    """ASGI middleware, the outermost one: lets the gateway reach a WebSocket's transport.

    ASGI has no way to drop a peer that does not read: to close politely is to wait for it. uvicorn's `send` belongs to
    the protocol object that has the transport; under another server there is none, and a stalled connection is left
    to the kernel.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            transport = getattr(getattr(send, "__self__", None), "transport", None)
            if hasattr(transport, "abort"):
                scope.setdefault("extensions", {})[_TRANSPORT] = transport
        await self._app(scope, receive, send)


class Socket:
    """A WebSocket that was asked for; `accept` it first."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.headers: list[tuple[bytes, bytes]] = scope["headers"]
        self.query: bytes = scope["query_string"]
        self._receive = receive
        self._send = send
        self._transport: Any = scope.get("extensions", {}).get(_TRANSPORT)

    async def accept(self) -> None:
        message = await self._receive()
        if message["type"] != "websocket.connect":
            raise Gone(1006)
        await self._pass({"type": "websocket.accept"})

    async def receive(self) -> str:
        """The text of the client's next frame. Gone, or Refused for one that is binary or too large."""
        message = await self._receive()
        if message["type"] == "websocket.disconnect":
            raise Gone(message.get("code") or 1005)
        text: str | None = message.get("text")
        if text is None or len(text) > MAX_FRAME_BYTES:
            raise Refused(CloseCode.BAD_REQUEST, "Frames are JSON text of at most 64 KiB.")
        return text

    async def send(self, text: str) -> None:
        """Write a frame; waits while the client does not read. Gone."""
        await self._pass({"type": "websocket.send", "text": text})

    async def close(self, code: int, reason: str) -> None:
        """Close with a code, or, if the client does not even read that within a second, without.

        Of a reason that does not fit into a close frame the beginning is sent. A client that does not answer the close
        is dropped a little later.
        """
        reason = reason.encode("utf-8", "replace")[:_MAX_REASON_BYTES].decode("utf-8", "ignore")
        if self._transport is not None:
            asyncio.get_running_loop().call_later(_LINGER_S, self._transport.abort)
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await self._pass({"type": "websocket.close", "code": code, "reason": reason})
        except TimeoutError:
            self.abort()
        except Gone:
            return

    def abort(self) -> None:
        """Drop the connection; what was not yet sent is lost."""
        if self._transport is not None:
            self._transport.abort()

    @property
    def is_closing(self) -> bool:
        """Whether the server is closing the connection by itself: it waits for what a stalled peer does not take."""
        return self._transport is not None and self._transport.is_closing()

    async def _pass(self, message: dict[str, Any]) -> None:
        try:
            await self._send(message)
        except (OSError, RuntimeError):  # the ASGI server's ways to say that the peer, or its own side, has closed
            raise Gone(1006) from None
