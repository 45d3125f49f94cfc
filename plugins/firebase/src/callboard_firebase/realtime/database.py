"""The Realtime Database, asynchronously: reads, writes and watches.

database = (await self.host.shared(Firebase)).realtime
await database.set("clients/demo/direct_message_notif/-N1", {"content": "hello"})
async with database.watch("clients/demo/direct_message_notif", Query(limit_to_last=100)) as batches:
    async for batch in batches:
        ...
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from itertools import pairwise
from types import TracebackType
from typing import Any, Self

import httpx
import msgspec

from callboard.errors import Internal, InvalidArgs, Unavailable
from callboard_firebase.outage import Outage
from callboard_firebase.realtime.address import Address
from callboard_firebase.realtime.bodies import Bodies, size_of
from callboard_firebase.realtime.connection import Connections
from callboard_firebase.realtime.options import RealtimeOptions
from callboard_firebase.realtime.paths import node, segments
from callboard_firebase.realtime.push_ids import PushIds
from callboard_firebase.realtime.query import Query
from callboard_firebase.realtime.rest import Ask, Rest
from callboard_firebase.realtime.stats import Counters, StreamStats
from callboard_firebase.realtime.stream import NodeStream, Shared
from callboard_firebase.realtime.tokens import Tokens
from callboard_firebase.realtime.values import Body, encode, encode_update
from callboard_firebase.realtime.watch import NodeWatch

_log = logging.getLogger("callboard_firebase.realtime")

_SILENT = {"print": "silent"}
"""The answer to a write is empty, instead of what was written."""


class RealtimeDatabase:
    """An async context manager; it dials when it is first asked.

    Errors of every method: InvalidArgs (a path or value the database would refuse or change), PermissionDenied,
    Unauthenticated (a renewed token is refused too), NotFound (no such database), ResourceExhausted, DeadlineExceeded,
    Unavailable, FailedPrecondition (the query's index is missing; the answer is too large); a write that increments and
    whose answer never came is OutcomeUnknown. The database's own texts are in `__cause__` alone.
    """

    def __init__(self, address: Address, tokens: Tokens, options: RealtimeOptions | None = None) -> None:
        self._address = address
        self._tokens = tokens
        self._options = options or RealtimeOptions()
        self._bodies = Bodies()
        self._push_ids = PushIds()
        self._rest: Rest | None = None
        self._shared: Shared | None = None
        self._counters = Counters()
        self._streams: dict[NodeStream, asyncio.Task[None]] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._tokens.close)
            # Reads the certificates of the authorities from the disk.
            context = await asyncio.to_thread(httpx.create_ssl_context)
            self._rest = await stack.enter_async_context(Rest(self._address, self._tokens, self._options, context))
            connections = Connections(self._address, self._options, context)
            outage = Outage(self._options.backoff())
            self._shared = Shared(connections, self._tokens, self._options, self._bodies, self._counters, outage)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._rest = self._shared = None
        streams, self._streams = self._streams, {}
        for stream, task in streams.items():
            stream.close()
            task.cancel()
            stream.watch.fail(Unavailable("The service is closing its listeners."))
        await asyncio.gather(*streams.values(), return_exceptions=True)
        await self._stack.aclose()

    async def get(self, path: str, query: Query | None = None, *, shallow: bool = False) -> Any:
        """The JSON value at a path (`""`: the root), None where there is nothing.

        With a `query`, those of its children that match, in no order. `shallow`: an object's children are all `true`.
        """
        if shallow and query is not None:
            raise InvalidArgs("A shallow read takes no query.")
        parameters = {"shallow": "true"} if shallow else query.parameters() if query is not None else {}
        body = await self._open().send(Ask("GET", self._address.url(segments(path), parameters)))
        return await self._decoded(body)

    async def set(self, path: str, value: Any) -> None:
        """Replace what is at a path; None removes it."""
        keys = node(path)
        await self._write("PUT", keys, await self._encoded(partial(encode, value), value))

    async def update(self, path: str, values: Mapping[str, Any]) -> None:
        """Replace values below a path, all or none of them: `{"read": True, "a/b": None}`; None removes."""
        keys = segments(path)
        if not values:
            return
        for below in values:
            node(below)
        ordered = sorted(f"{below}/" for below in values)
        if any(inner.startswith(outer) for outer, inner in pairwise(ordered)):
            raise InvalidArgs("One path of an update lies within another.")
        await self._write("PATCH", keys, await self._encoded(partial(encode_update, values), values))

    async def push(self, path: str, value: Any) -> str:
        """Add a child under a key made here, which sorts by time: the key. Sent twice, it is one child all the same."""
        name = self._push_ids.next()
        await self.set(f"{path}/{name}" if path else name, value)
        return name

    async def delete(self, path: str) -> None:
        """Remove what is at a path."""
        await self._open().send(Ask("DELETE", self._address.url(node(path), _SILENT)))

    @asynccontextmanager
    async def watch(self, path: str, query: Query | None = None) -> AsyncIterator[NodeWatch]:
        """Follow a node's children while the block runs; yields the iterator of their batches.

        The first batch holds them all, later ones what changed; nothing comes twice, across reconnects too. Iteration
        raises what ended this watch: PermissionDenied, Unauthenticated, InvalidArgs, FailedPrecondition …, or
        Unavailable when the service closes. Anything passing is healed beneath it.
        """
        if self._shared is None:
            raise Unavailable("The service is closing its listeners.")
        url = self._address.url(segments(path), query.parameters() if query is not None else {})
        stream = NodeStream(url, NodeWatch(), self._shared)
        task = asyncio.create_task(stream.run(), name="realtime-stream")
        task.add_done_callback(partial(self._on_stream_done, stream))
        self._streams[stream] = task
        try:
            yield stream.watch
        finally:
            stream.close()
            task.cancel()
            await asyncio.wait([task])

    def stats(self) -> StreamStats:
        return self._counters.stats(asyncio.get_running_loop().time())

    async def check(self, timeout_s: float = 5.0) -> float:
        """Read a node that does not exist: the seconds it took. Raises the CallError that says what is wrong."""
        began = time.monotonic()
        await self._open().send(Ask("GET", self._address.url(["callboard_probe"])), timeout_s)
        return time.monotonic() - began

    async def _write(self, method: str, keys: list[str], body: Body) -> None:
        await self._open().send(Ask(method, self._address.url(keys, _SILENT), body.content, body.repeatable))

    async def _encoded(self, encode: Callable[[], Body], value: Any) -> Body:
        return await self._bodies.run(size_of(value), encode)

    async def _decoded(self, body: bytes) -> Any:
        try:
            return await self._bodies.run(len(body), partial(msgspec.json.decode, body))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Unavailable("Firebase answered with something that is no JSON.") from error

    def _on_stream_done(self, stream: NodeStream, task: asyncio.Task[None]) -> None:
        self._streams.pop(stream, None)
        if task.cancelled() or (error := task.exception()) is None:
            return
        _log.error("a realtime stream's task died of %s; its watch ends", type(error).__name__)
        failure = Internal("The stream failed.")
        failure.__cause__ = error
        stream.watch.fail(failure)

    def _open(self) -> Rest:
        if self._rest is None:
            raise Unavailable("The service is closing.")
        return self._rest
