"""A Realtime Database server that does what a test tells it to, over a real socket.

async with RealtimeServer(script) as server:    # script(exchange) runs once per request
    ...
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self, TypeAlias
from urllib.parse import parse_qsl, unquote, urlsplit

from callboard_firebase import RealtimeDatabase, RealtimeOptions
from callboard_firebase.realtime import Address, EmulatorTokens, Tokens

Script: TypeAlias = Callable[["Exchange"], Awaitable[None]]

QUICK = RealtimeOptions(
    connect_timeout_s=5, request_timeout_s=10, backoff_base_s=0.02, backoff_cap_s=0.2, reopens=100, reopens_window_s=1.0
)


class CountedTokens:
    """`t1`, then another whenever one is refused."""

    def __init__(self) -> None:
        self.made = 1
        self.closed = False

    async def get(self, refused: str | None = None) -> str:
        if refused == f"t{self.made}":
            self.made += 1
        return f"t{self.made}"

    async def close(self) -> None:
        self.closed = True


class Exchange:
    """One request, seen from the server, and ways to answer it."""

    def __init__(
        self, number: int, connection: int, head: bytes, body: bytes, reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:  # fmt: skip
        first, *lines = head.decode().split("\r\n")
        self.number = number
        self.connection = connection
        self.method, target, _ = first.split(" ")
        self.path = unquote(urlsplit(target).path)
        self.query = dict(parse_qsl(urlsplit(target).query, keep_blank_values=True))
        self.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        self.body = body
        self._reader = reader
        self._writer = writer

    @property
    def token(self) -> str:
        return self.headers["authorization"].removeprefix("Bearer ")

    def json(self) -> Any:
        return json.loads(self.body)

    async def answer(self, status: int = 200, body: Any = None, **headers: str) -> None:
        """A whole JSON answer; its connection can be used again."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = {"Content-Type": "application/json", "Content-Length": str(len(content)), **headers}
        await self.raw(_head(status, head) + content)

    async def refuse(self, status: int, text: str = "no") -> None:
        await self.answer(status, {"error": text})

    async def redirect(self, location: str) -> None:
        await self.answer(307, None, Location=location)

    async def stream(self, kind: str = "text/event-stream; charset=utf-8") -> None:
        """Begin an answer that ends with its connection, as Google's do."""
        await self.raw(_head(200, {"Content-Type": kind, "Cache-Control": "no-cache", "Connection": "close"}))

    async def event(self, name: str, data: Any) -> None:
        text = json.dumps(data, ensure_ascii=False)
        await self.raw(f"event: {name}\ndata: {text}\n\n".encode())

    async def put(self, path: str, data: Any) -> None:
        await self.event("put", {"path": path, "data": data})

    async def patch(self, path: str, data: Any) -> None:
        await self.event("patch", {"path": path, "data": data})

    async def raw(self, content: bytes) -> None:
        self._writer.write(content)
        await self._writer.drain()

    async def silence(self) -> None:
        """Say nothing until the client leaves."""
        while await self._reader.read(65536):
            pass

    def reset(self) -> None:
        """End the connection as a crash does."""
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    def hang_up(self) -> None:
        self._writer.close()


class RealtimeServer:
    """Serves HTTP/1.1, request by request."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._server: asyncio.Server | None = None
        self._arrived = asyncio.Condition()
        self._errors: list[Exception] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._connections = 0
        self.exchanges: list[Exchange] = []
        self.address = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=2**20, backlog=2048)
        host, port = self._server.sockets[0].getsockname()
        self.address = f"{host}:{port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._errors and error is None:
            raise ExceptionGroup("the script failed", self._errors)

    async def asked(self, number: int) -> Exchange:
        """The `number`-th request (from 1), as soon as there is one."""
        async with asyncio.timeout(20), self._arrived:
            await self._arrived.wait_for(lambda: len(self.exchanges) >= number)
        return self.exchanges[number - 1]

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        task = asyncio.get_running_loop().create_task(self._serve(self._connections, reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, connection: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while not writer.is_closing():
                head = (await reader.readuntil(b"\r\n\r\n"))[:-4]
                length = next(
                    (int(line[15:]) for line in head.lower().split(b"\r\n") if line[:15] == b"content-length:"), 0
                )
                body = await reader.readexactly(length)
                async with self._arrived:
                    exchange = Exchange(len(self.exchanges) + 1, connection, head, body, reader, writer)
                    self.exchanges.append(exchange)
                    self._arrived.notify_all()
                await self._script(exchange)
                if "text/event-stream" in exchange.headers.get("accept", ""):
                    return
        except (ConnectionError, asyncio.IncompleteReadError):
            return  # the client left
        except Exception as error:
            self._errors.append(error)
            raise
        finally:
            writer.close()


@asynccontextmanager
async def served(
    script: Script, options: RealtimeOptions = QUICK, tokens: Tokens | None = None
) -> AsyncIterator[tuple[RealtimeServer, RealtimeDatabase]]:
    """A server and a client of it: an emulator's unless it is given tokens."""
    async with RealtimeServer(script) as server:
        address = Address(f"http://{server.address}", "demo", emulated=tokens is None)
        async with RealtimeDatabase(address, tokens or EmulatorTokens(), options) as database:
            yield server, database


def _head(status: int, headers: dict[str, str]) -> bytes:
    return "".join([f"HTTP/1.1 {status} X\r\n", *(f"{k}: {v}\r\n" for k, v in headers.items()), "\r\n"]).encode()


def _length(head: bytes) -> int:
    fields = (line.partition(b":") for line in head.lower().split(b"\r\n"))
    return next((int(value) for name, _, value in fields if name == b"content-length"), 0)
