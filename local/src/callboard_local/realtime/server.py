"""The Realtime Database's server."""

from pathlib import Path
from types import TracebackType
from typing import Self

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from callboard_local.http_server import HttpServer
from callboard_local.server import HOST

from .app import RealtimeApp
from .event_stream import ABORT
from .namespaces import Namespaces
from .streams import KeepAlive

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
        self.host = HOST
        self.port = port
        self._data = data
        self._keep_alive = KeepAlive(keep_alive_s)
        self._max_pending_bytes = max_pending_bytes
        self._namespaces: Namespaces | None = None
        self._server: HttpServer | None = None

    @property
    def address(self) -> str:
        """`host:port`, the value for `FIREBASE_DATABASE_EMULATOR_HOST`."""
        return f"{self.host}:{self.port}"

    async def __aenter__(self) -> Self:
        self._namespaces = Namespaces(self._data)
        app = RealtimeApp(self._namespaces, self._keep_alive, self._max_pending_bytes)
        self._server = HttpServer(app.asgi, http=_Protocol, lifespan="off", timeout_keep_alive=_IDLE_CONNECTION_S)
        try:
            self.port = await self._server.start(self.port)
        except BaseException:
            self._namespaces.close()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._namespaces is None or self._server is None:
            return
        for database in self._namespaces:
            for stream in list(database.listeners):
                stream.drop()
        await self._server.stop()
        self._namespaces.close()


class _Protocol(HttpToolsProtocol):
    """uvicorn's HTTP, whose connections the app can cut."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {ABORT: {"abort": self.transport.abort}}
