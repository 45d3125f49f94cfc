"""The listen engine: many watches on few Listen streams, without a thread of its own.

async with ListenEngine(client) as engine:
    async with engine.watch(client.collection("clients/demo/notifications")) as batches:
        async for batch in batches:
            ...
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from google.cloud.firestore import AsyncClient

from callboard.errors import Internal, InvalidArgs, Unavailable
from callboard_firebase.channel import Lines
from callboard_firebase.listen.documents import Batch
from callboard_firebase.listen.options import ListenOptions
from callboard_firebase.listen.stream import Stream
from callboard_firebase.listen.target import Source, Target
from callboard_firebase.listen.watch import Watch
from callboard_firebase.outage import Outage

_log = logging.getLogger("callboard_firebase.listen")


class _Watching(AbstractAsyncContextManager[AsyncIterator[Batch]]):
    """One watch while its block runs. A generator would keep its frame, and the source, for each of thousands."""

    __slots__ = ("_engine", "_stream", "_target")

    def __init__(self, engine: ListenEngine, target: Target) -> None:
        self._engine = engine
        self._target = target
        self._stream: Stream | None = None

    async def __aenter__(self) -> AsyncIterator[Batch]:
        self._stream = self._engine.add(self._target)
        return self._target.watch

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._stream is not None:
            self._stream.remove(self._target)


@dataclass(frozen=True, slots=True)
class ListenStats:
    """The engine at one moment. `waiting`: watches without an up-to-date state; `silent_s`: since the last response."""

    streams: int
    connected: int
    targets: int
    waiting: int
    reconnects: int
    silent_s: float | None
    last_status: str | None


class ListenEngine:
    """Opens streams as watches need them, and owns their tasks."""

    def __init__(self, client: AsyncClient, options: ListenOptions | None = None) -> None:
        self._client = client
        self._options = options or ListenOptions()
        self._lines = Lines(client, streams_per_line=self._options.streams_per_connection)
        self._outage = Outage(self._options.backoff())
        self._streams: dict[Stream, asyncio.Task[None]] = {}
        self._open = False

    async def __aenter__(self) -> Self:
        self._open = True
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._open = False
        streams, self._streams = self._streams, {}
        for stream, task in streams.items():
            task.cancel()
            stream.fail_all(Unavailable("The service is closing its listeners."))
        try:
            await asyncio.gather(*streams.values(), return_exceptions=True)
        finally:
            await self._lines.close()

    def watch(self, source: Source) -> AbstractAsyncContextManager[AsyncIterator[Batch]]:
        """Listen to a query, a collection or a document while the block runs; yields the iterator of its batches.

        The first batch holds the whole result, later ones what changed; nothing comes twice, across reconnects too.
        Iteration raises what ended this watch: PermissionDenied, InvalidArgs, NotFound …, or Unavailable when the
        engine closes. Anything passing is healed beneath it. InvalidArgs: the source cannot be listened to.
        """
        try:
            return _Watching(self, Target.of(source, Watch()))
        except ValueError as error:
            raise InvalidArgs("This query cannot be listened to.") from error

    def add(self, target: Target) -> Stream:
        """Listen to a target, on a stream that has room. Unavailable: the engine is not open."""
        if not self._open:
            raise Unavailable("The service is closing its listeners.")
        stream = self._stream_with_room()
        stream.add(target)
        return stream

    def stats(self) -> ListenStats:
        streams = list(self._streams)
        heard = [stream.heard_at for stream in streams if stream.heard_at is not None]
        ended = [stream.last_status.name for stream in streams if stream.last_status is not None]
        return ListenStats(
            streams=len(streams),
            connected=sum(stream.connected for stream in streams),
            targets=sum(len(stream) for stream in streams),
            waiting=sum(stream.unsettled() for stream in streams),
            reconnects=sum(stream.reconnects for stream in streams),
            silent_s=asyncio.get_running_loop().time() - max(heard) if heard else None,
            last_status=ended[-1] if ended else None,
        )

    def _stream_with_room(self) -> Stream:
        # An emptied stream stays, without a connection: its back-off outlives the watches that were refused.
        for stream in self._streams:
            if len(stream) < self._options.targets_per_stream:
                return stream
        stream = Stream(self._client, self._lines, self._outage, self._options)
        task = asyncio.create_task(stream.run(), name="firestore-listen-stream")
        task.add_done_callback(lambda task: self._on_stream_done(stream, task))
        self._streams[stream] = task
        return stream

    def _on_stream_done(self, stream: Stream, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            return
        if self._streams.pop(stream, None) is not None:
            self._lines.give_back(stream.line)
        error = task.exception()
        _log.error("a listen stream's task died of %s; its watches end", type(error).__name__)
        failure = Internal("The listen stream failed.")
        failure.__cause__ = error
        stream.fail_all(failure)
