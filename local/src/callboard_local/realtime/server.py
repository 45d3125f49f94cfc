"""The HTTP server: uvicorn on the loopback, started and stopped within an event loop that is already there."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .app import RealtimeApp
from .event_stream import ABORT
from .namespaces import Namespaces
from .streams import KeepAlive

_BACKLOG = 2048
_IDLE_CONNECTION_S = 75  # longer than a client's pool keeps one, which then never meets a closing one


class RealtimeServer:
    """A Realtime Database in this process: `async with RealtimeServer() as server: server.address`.

    `port` 0 takes a free one. `data` is a SQLite file to keep the trees in; without it they live in memory. An idle
    stream says so every `keep_alive_s` seconds (None: never), and loses its client when that leaves more than
    `max_pending_bytes` unread.
    """

    def __init__(
        self,
        port: int = 0,
        *,
        data: Path | None = None,
        keep_alive_s: float | None = 30.0,
        max_pending_bytes: int = 8 * 1024 * 1024,
    ) -> None:
        self.host = "127.0.0.1"
        self.port = port
        self._data = data
        self._keep_alive = KeepAlive(keep_alive_s)
        self._max_pending_bytes = max_pending_bytes
        self._namespaces: Namespaces | None = None
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        """`host:port`, the value for `FIREBASE_DATABASE_EMULATOR_HOST`."""
        return f"{self.host}:{self.port}"

    async def __aenter__(self) -> Self:
        listener = socket.create_server((self.host, self.port), backlog=_BACKLOG)
        try:
            self.port = listener.getsockname()[1]
            self._namespaces = Namespaces(self._data)
            app = RealtimeApp(self._namespaces, self._keep_alive, self._max_pending_bytes)
            self._server = _Server(app)
            self._serving = asyncio.create_task(self._server.serve(sockets=[listener]), name="realtime server")
            await self._server.started_or_ended(self._serving)
        except BaseException:
            listener.close()
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._namespaces is not None:
            for database in self._namespaces:
                for stream in list(database.listeners):
                    stream.drop()
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            await self._serving
        if self._namespaces is not None:
            self._namespaces.close()


class _Protocol(HttpToolsProtocol):
    """uvicorn's HTTP, whose connections the app can cut."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {ABORT: {"abort": self.transport.abort}}


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers, and with an event for its start."""

    def __init__(self, app: RealtimeApp) -> None:
        super().__init__(
            uvicorn.Config(
                app.asgi,
                http=_Protocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=_IDLE_CONNECTION_S,
                timeout_graceful_shutdown=1,
            )
        )
        self.ready = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    async def started_or_ended(self, serving: asyncio.Task[None]) -> None:
        """Wait until it serves; raises what prevented that."""
        ready = asyncio.create_task(self.ready.wait(), name="realtime server's start")
        try:
            await asyncio.wait({ready, serving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
        if serving.done():
            serving.result()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
