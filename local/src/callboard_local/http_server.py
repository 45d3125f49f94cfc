"""uvicorn on the loopback, started and stopped within an event loop that is already there."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn

from .server import HOST

_BACKLOG = 2048


class HttpServer(uvicorn.Server):
    """`port = await server.start(port)`, then `await server.stop()`. Signals are the process's; `options` uvicorn's."""

    def __init__(self, app: Any, **options: Any) -> None:
        config = uvicorn.Config(
            app,
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=1,
            **options,
        )
        super().__init__(config)
        self._ready = asyncio.Event()
        self._serving: asyncio.Task[None] | None = None

    async def start(self, port: int) -> int:
        """Listen on this port of the loopback, 0 for a free one, and return it when it serves; OSError."""
        listener = socket.create_server((HOST, port), backlog=_BACKLOG)
        self._serving = asyncio.create_task(self.serve(sockets=[listener]), name="HTTP server")
        ready = asyncio.create_task(self._ready.wait(), name="HTTP server's start")
        try:
            await asyncio.wait({ready, self._serving}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await self.stop()
            raise
        finally:
            ready.cancel()
        if self._serving.done():
            listener.close()
            self._serving.result()
            raise OSError(f"nothing can be served on {HOST}:{port}")
        found: int = listener.getsockname()[1]
        return found

    async def stop(self) -> None:
        """End what is under way, within a second, and return when it is done."""
        self.should_exit = True
        if self._serving is not None:
            await asyncio.wait({self._serving})

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
