"""A TCP proxy on the loopback whose faults a test turns on and off: latency, black holes, resets, lost replies."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from types import TracebackType
from typing import Self

from .server import HOST

_CHUNK_BYTES = 65_536
_CHUNKS_UNDER_WAY = 256
_REMEMBERED_BYTES = 4_096
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER of no time: close() sends RST


class FaultProxy:
    """`async with FaultProxy(server.host, server.port) as proxy:` and connect to `proxy.host`, `proxy.port`.

    It passes bytes and knows no protocol, so TLS goes through it too. What it takes in and does not pass on it
    acknowledges all the same, as a proxy in the middle would: the kernel's own time-outs do not help against it.
    """

    def __init__(self, host: str, port: int) -> None:
        self.host = HOST
        self.port = 0
        self.accepted = 0
        """Connections so far."""
        self.dropped = 0
        """Replies dropped so far."""
        self.delay_s = 0.0
        self.jitter_s = 0.0
        """Each chunk, each way, is late by `delay_s` ± `jitter_s`, in order."""
        self.bytes_per_s: float | None = None
        """Each way of each connection."""
        self.idle_limit_s: float | None = None
        """A connection made from now on is reset when no byte has come either way for this long."""
        self._target = host, port
        self._server: asyncio.Server | None = None
        self._links: set[_Link] = set()
        self._is_black_hole = False
        self._reply_to_drop: bytes | None = None

    @property
    def address(self) -> str:
        """`host:port`."""
        return f"{self.host}:{self.port}"

    @property
    def open(self) -> int:
        """Connections from clients that are open now."""
        return len(self._links)

    def black_hole(self) -> None:
        """Swallow everything, both ways; new connections are accepted, and hear nothing."""
        self._is_black_hole = True
        self.lose()

    def lose(self, who: bytes = b"") -> None:
        """The present connections go half-open: they swallow everything. New ones work.

        `who`: those alone whose client said this early on, within its first 4 KiB.
        """
        for link in self._links:
            link.lost = link.lost or who in link.said

    def redirect(self, host: str, port: int) -> None:
        """New connections go to another server; open ones stay where they are."""
        self._target = host, port

    def heal(self) -> None:
        """Black hole, latency and throttle end; connections that have swallowed something stay dead."""
        self._is_black_hole = False
        self.delay_s = self.jitter_s = 0.0
        self.bytes_per_s = None
        self._reply_to_drop = None

    def reset(self) -> None:
        """RST to both ends of every connection."""
        for link in list(self._links):
            link.reset()

    def half_close(self) -> None:
        """FIN to every client; what they still send goes on to the server."""
        for link in self._links:
            link.to_client.write_eof()

    def drop_reply(self, command: bytes) -> None:
        """Once: a request that contains `command` reaches the server; in place of its reply comes a reset."""
        self._reply_to_drop = command

    def refuse(self) -> None:
        """Stop listening: who connects is refused. Open connections go on."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def accept(self) -> None:
        """Listen, on the same port as before."""
        if self._server is None:
            listening = socket.create_server((self.host, self.port), backlog=2_048)
            self.port = listening.getsockname()[1]
            self._server = await asyncio.start_server(self._serve, sock=listening)

    async def __aenter__(self) -> Self:
        await self.accept()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.refuse()
        links = list(self._links)
        for link in links:
            link.reset()
        if links:
            await asyncio.wait([link.task for link in links])

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        try:
            from_server, to_server = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        link = _Link(self, reader, writer, from_server, to_server)
        link.lost = self._is_black_hole
        self._links.add(link)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.idle_limit_s) as link.idle:
                    await link.pass_on()
        finally:
            self._links.discard(link)
            link.reset()

    def takes_the_reply_to(self, request: bytes) -> bool:
        """Whether this is the request whose reply is to be dropped; true once."""
        if self._reply_to_drop is None or self._reply_to_drop not in request:
            return False
        self._reply_to_drop = None
        return True

    def is_busy(self, idle: asyncio.Timeout | None) -> None:
        """Bytes came: the connection's idle time begins anew."""
        if idle is not None and self.idle_limit_s is not None and not idle.expired():
            idle.reschedule(asyncio.get_running_loop().time() + self.idle_limit_s)

    async def hold(self, since: float) -> None:
        """Wait as long as a chunk that came at `since`, by the loop's clock, has to be late."""
        if self.delay_s or self.jitter_s:
            late_s = self.delay_s + random.uniform(-self.jitter_s, self.jitter_s)  # noqa: S311 - jitter
            await asyncio.sleep(max(0.0, since + late_s - asyncio.get_running_loop().time()))


class _Link:
    """One client's connection, and the one to the server that belongs to it."""

    def __init__(
        self,
        proxy: FaultProxy,
        from_client: asyncio.StreamReader,
        to_client: asyncio.StreamWriter,
        from_server: asyncio.StreamReader,
        to_server: asyncio.StreamWriter,
    ) -> None:
        self.lost = False
        self.said = bytearray()
        self.to_client = to_client
        self.idle: asyncio.Timeout | None = None
        self.task: asyncio.Task[None] = asyncio.current_task()  # type: ignore[assignment]  # we are in one
        self._proxy = proxy
        self._from_client = from_client
        self._from_server = from_server
        self._to_server = to_server
        self._drops_reply = False

    async def pass_on(self) -> None:
        """Until both sides have ended, or one was reset."""
        with contextlib.suppress(ConnectionError):
            await asyncio.gather(
                self._pump(self._from_client, self._to_server, requests=True),
                self._pump(self._from_server, self.to_client, requests=False),
            )

    def reset(self) -> None:
        for writer in (self.to_client, self._to_server):
            if (connection := writer.get_extra_info("socket")) is not None:
                with contextlib.suppress(OSError):  # closed already
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, requests: bool) -> None:
        chunks: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_CHUNKS_UNDER_WAY)
        writing = asyncio.create_task(self._write(chunks, writer))
        try:
            while data := await reader.read(_CHUNK_BYTES):
                self._proxy.is_busy(self.idle)
                if requests:
                    self.said += data[: _REMEMBERED_BYTES - len(self.said)]
                if requests and self._proxy.takes_the_reply_to(data):
                    self._drops_reply = True
                if not requests and self._drops_reply:
                    self._proxy.dropped += 1
                    raise ConnectionResetError
                if not self.lost:
                    await chunks.put((asyncio.get_running_loop().time(), data))
            if requests and self.lost:
                raise ConnectionResetError  # nobody is left to whom this connection could be of use
            await chunks.put((0.0, b""))
            await writing
        except BaseException:
            writing.cancel()
            self.reset()
            raise

    async def _write(self, chunks: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        while True:
            came_at, data = await chunks.get()
            if not data:
                break
            await self._proxy.hold(came_at)
            while data and not self.lost:
                rate = self._proxy.bytes_per_s
                size = len(data) if rate is None else max(1, int(rate / 10))
                if rate is not None:
                    await asyncio.sleep(len(data[:size]) / rate)
                writer.write(data[:size])
                await writer.drain()
                data = data[size:]
        if writer.can_write_eof() and not self.lost:
            with contextlib.suppress(OSError):
                writer.write_eof()
