"""A TCP proxy whose connections can go half-open: nobody is told, and nothing gets through any more."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self


class HalfOpenProxy:
    """`async with HalfOpenProxy(server.address) as proxy: connect to proxy.address; proxy.lose()`."""

    def __init__(self, target: str) -> None:
        self._host, _, self._port = target.rpartition(":")
        self._server: asyncio.Server | None = None
        self._passing: set[asyncio.Event] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self.address = ""
        self.accepted = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await self._server.wait_closed()
        await asyncio.sleep(0)

    def lose(self) -> None:
        """From now on the present connections swallow what they are sent; new ones work."""
        for passing in self._passing:
            passing.clear()
        self._passing.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        upstream_reader, upstream = await asyncio.open_connection(self._host, int(self._port))
        self._writers += [writer, upstream]
        passing = asyncio.Event()
        passing.set()
        self._passing.add(passing)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_pump(reader, upstream, passing))
            tasks.create_task(_pump(upstream_reader, writer, passing))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, passing: asyncio.Event) -> None:
    try:
        while data := await reader.read(65_536):
            if passing.is_set():
                writer.write(data)
        if passing.is_set():
            writer.close()
    except ConnectionError:
        writer.transport.abort()
