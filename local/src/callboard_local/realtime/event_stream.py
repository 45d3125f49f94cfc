"""The response that carries a stream."""

import asyncio

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .listeners import Listeners
from .streams import KeepAlive, Stream

ABORT = "callboard.abort"
"""The extension of the ASGI scope by which a response can cut its connection: `{"abort": function}`."""


class EventStreamResponse(Response):
    """Sends a stream's events until its client leaves, it ends, or it is dropped: then the connection is cut."""

    media_type = "text/event-stream"
    charset = "utf-8"

    def __init__(self, stream: Stream, listeners: Listeners, keep_alive: KeepAlive) -> None:
        super().__init__(headers={"Cache-Control": "no-cache"})
        del self.headers["content-length"]
        self._stream = stream
        self._listeners = listeners
        self._keep_alive = keep_alive

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.create_task(self._send(send), name="event stream")
        leaving = asyncio.create_task(_until_disconnected(receive), name="event stream's client")
        dropping = asyncio.create_task(self._stream.dropped.wait(), name="event stream's drop")
        tasks = {sending, leaving, dropping}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if dropping in done:
                # Closing would first wait for the client to read what was sent.
                scope["extensions"][ABORT]["abort"]()
                await leaving
        finally:
            self._listeners.discard(self._stream)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        for task in done:
            task.result()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for chunk in self._stream.chunks(self._keep_alive):
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _until_disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
