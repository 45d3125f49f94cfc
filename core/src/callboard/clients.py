"""redis-py's clients with what they lack: a bound on every call, one TLS context, a pub/sub read that cannot freeze."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Iterable
from contextvars import ContextVar
from typing import Any, TypeAlias, cast

import hiredis
from redis import exceptions as redis
from redis.asyncio import Connection, ConnectionPool, Redis, RedisCluster
from redis.asyncio.client import Pipeline
from redis.asyncio.cluster import ClusterPipeline

Reply: TypeAlias = "list[Any] | Exception"
"""One pub/sub reply: `[b"message", channel, data]`, `[b"subscribe", channel, count]`, …, or a refusal."""

urgent: ContextVar[bool] = ContextVar("urgent", default=False)
"""Set in a task whose calls must not queue behind those of callers, however many wait: it keeps leases alive."""

_READ_BYTES = 65_536
_URGENT_SLOTS = 8
_LOOK_UP_SLOTS = 8
"""The look-up of a cluster's nodes takes no slot."""


class Trust:
    """Shared by connections: what was last used before `since`, a monotonic time, may lead nowhere by now."""

    def __init__(self) -> None:
        self.since = 0.0


class PlainOrTlsConnection(Connection):
    """redis-py's connection with one TLS context for all, and access to its stream."""

    def __init__(self, *, tls: ssl.SSLContext | None = None, trust: Trust | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._tls = tls
        self._trust = trust or Trust()
        self._used_at = 0.0

    def _connection_arguments(self) -> dict[str, Any]:
        # redis-py's own TLS connection loads the authorities anew, 30 ms on the loop, for every connection, and trusts
        # the system's beside the one it is given.
        arguments = dict(super()._connection_arguments())
        return arguments if self._tls is None else {**arguments, "ssl": self._tls}

    async def _connect(self) -> None:
        self._used_at = time.monotonic()
        await super()._connect()  # type: ignore[no-untyped-call]

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        # A connection that the server closed while it lay in the pool. redis-py's cluster client does not look, and a
        # command without a retry would fail.
        if self._reader is not None and (
            self._reader.at_eof() or self._reader.exception() is not None or self._used_at < self._trust.since
        ):
            await self.disconnect(nowait=True)
        self._used_at = time.monotonic()
        if self._writer is None:
            await self.connect_check_health(check_health=False)
        await self._send([command] if isinstance(command, bytes) else command)

    async def _send(self, parts: Iterable[bytes]) -> None:
        # redis-py sends inside asyncio.wait_for, which spends a task on every command and, before Python 3.12, swallows
        # a cancellation that arrives at that moment.
        assert self._writer is not None  # noqa: S101 - for the type checker: it is connected
        try:
            self._writer.writelines(parts)
            if self._writer.transport.get_write_buffer_size():  # the kernel did not take all of it
                async with asyncio.timeout(self.socket_timeout):
                    await self._writer.drain()
        except BaseException as error:
            await self.disconnect(nowait=True)  # part of the command may be on its way
            if isinstance(error, TimeoutError):
                raise redis.TimeoutError(f"Timeout writing to {self._host_error()}") from error
            if isinstance(error, OSError):
                raise redis.ConnectionError(f"Error while writing to {self._host_error()}: {error}") from error
            raise

    def abort(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()

    async def disconnect(
        self,
        nowait: bool = False,
        error: Exception | None = None,
        failure_count: int | None = None,
        health_check_failed: bool = False,
    ) -> None:
        # redis-py closes politely what has failed: with TLS the socket then stays open for another 30 s, while a hung
        # peer is asked for its part of the closing.
        if nowait:
            self.abort()
        await super().disconnect(nowait, error, failure_count, health_check_failed)

    def write(self, data: bytes) -> None:
        if self._writer is None:
            raise redis.ConnectionError("The connection is closed.")
        self._writer.write(data)

    async def read(self) -> bytes:
        if self._reader is None:
            raise redis.ConnectionError("The connection is closed.")
        data = await self._reader.read(_READ_BYTES)
        if not data:
            raise redis.ConnectionError("The server closed the connection.")
        return data


class Subscriber:
    """One pub/sub connection: commands go out without waiting, replies come in by the batch.

    It never reconnects by itself, so nothing is lost unnoticed; and it reads the socket itself instead of through
    redis-py's `get_message(timeout=…)`, which spins for ever, and freezes the loop, when the socket dies of ETIMEDOUT.
    """

    def __init__(self, connection: PlainOrTlsConnection) -> None:
        self._connection = connection
        self._replies = hiredis.Reader(notEnoughData=Ellipsis)

    @property
    def port(self) -> int:
        return int(self._connection.port)

    async def connect(self) -> None:
        """Open it. A redis ConnectionError or TimeoutError says why not."""
        await self._connection.connect()  # type: ignore[no-untyped-call]

    async def close(self) -> None:
        """Drop it at once, unsent bytes included: the peer may be hung."""
        await self._connection.disconnect(nowait=True)

    def send(self, *commands: tuple[str, str]) -> None:
        """Write the commands in one go."""
        packed = (hiredis.pack_command(command) for command in commands)  # type: ignore[arg-type]  # any length
        self._connection.write(b"".join(packed))

    async def receive(self) -> list[Reply]:
        """All that comes with the next read, at least one reply; a redis ConnectionError or an OSError at the end."""
        replies: list[Reply] = []
        while not replies:
            self._replies.feed(await self._connection.read())
            while (reply := self._replies.gets()) is not Ellipsis:
                replies.append(reply)
        return replies


class Bounds:
    """How many calls of a client run at a time, and how long one may take, its wait for a slot included.

    A crowd that waits longer than it may is refused, and what is `urgent` has slots of its own meanwhile. Whoever gets
    a slot late has a third of the time left: else all would be sent, and given up a moment before their answers.
    """

    def __init__(self, limit_s: float, slots: int) -> None:
        self.most_at_a_time = slots + _URGENT_SLOTS
        self._limit_s = limit_s
        self._free = asyncio.Semaphore(slots)
        self._free_if_urgent = asyncio.Semaphore(_URGENT_SLOTS)

    async def run(self, call: Any, *args: Any, **options: Any) -> Any:
        free = self._free_if_urgent if urgent.get() else self._free
        ends_at = asyncio.get_running_loop().time() + self._limit_s
        try:
            async with asyncio.timeout_at(ends_at - self._limit_s / 3) as limit, free:
                limit.reschedule(ends_at)
                return await call(*args, **options)
        except TimeoutError as error:
            raise redis.TimeoutError(f"no answer within {self._limit_s:g} s") from error


class BoundedRedis(Redis):
    def __init__(self, bounds: Bounds, pool: ConnectionPool) -> None:
        super().__init__(connection_pool=pool)
        self.auto_close_connection_pool = True
        self._bounds = bounds

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        return await self._bounds.run(super().execute_command, *args, **options)

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        pipe = _Pipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)
        pipe._bounds = self._bounds
        return pipe


class _Pipeline(Pipeline):
    _bounds: Bounds

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        return cast(list[Any], await self._bounds.run(super().execute, raise_on_error))


class BoundedCluster(RedisCluster):
    """Looks where the nodes are beside its calls, which go on with what is known: a node that hangs delays its own
    keys' calls alone. redis-py's own look-up makes all calls wait, and breaks off those under way when it fails.

    Close it by `shut`: `aclose` is what redis-py itself calls when it wants a new look.
    """

    def __init__(
        self, bounds: Bounds, host: str, port: int, tls: ssl.SSLContext | None, trust: Trust, **options: Any
    ) -> None:
        # A node refuses, rather than waits, when all its connections are in use: the slots do the waiting.
        super().__init__(host, port, max_connections=bounds.most_at_a_time + _LOOK_UP_SLOTS, **options)
        self._bounds = bounds
        self._look: asyncio.Task[None] | None = None
        ours = {"tls": tls, "trust": trust}
        self.connection_kwargs.update(ours, connection_class=PlainOrTlsConnection)
        for node in self.startup_nodes:
            node.connection_class = PlainOrTlsConnection
            node.connection_kwargs.update(ours)

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        return await self._bounds.run(self._execute_known, *args, **options)

    async def _execute_known(self, *args: Any, **options: Any) -> Any:
        # Before it has seen the nodes, redis-py sends a script to any of them, which answers MOVED.
        await self.initialize()
        return await super().execute_command(*args, **options)

    async def initialize(
        self, additional_startup_nodes_info: Any = None, last_failed_node_name: str | None = None
    ) -> BoundedCluster:
        """Have the nodes looked up, if that is due. Waits when none is known, or when one has just failed us."""
        if not self._initialize:
            return self
        look = self._look
        if look is None:
            look = self._look = asyncio.create_task(self._look_up(last_failed_node_name), name="look up the nodes")
            look.add_done_callback(self._has_looked)
        if last_failed_node_name is not None or not self._knows_nodes:
            await asyncio.wait({look})
            if look.cancelled():
                raise redis.ConnectionError("This client has been closed.")
            if not self._knows_nodes:
                await look  # raises what it died of
        return self

    @property
    def _knows_nodes(self) -> bool:
        return bool(self.nodes_manager.slots_cache and self.commands_parser.commands)

    async def _look_up(self, last_failed_node_name: str | None) -> None:
        await self.nodes_manager.initialize(last_failed_node_name=last_failed_node_name)
        if not self.commands_parser.commands:
            await self._learn_commands()
        self._initialize = False

    async def _learn_commands(self) -> None:
        """Which of a command's arguments are keys: the same on all nodes, of which any may hang."""
        failure: Exception = redis.RedisClusterException("The cluster has no primary.")
        for node in self.get_primaries():
            try:
                return await self.commands_parser.initialize(node)
            except (redis.ConnectionError, redis.TimeoutError) as error:
                failure = error
        raise failure

    def _has_looked(self, look: asyncio.Task[None]) -> None:
        self._look = None
        if not look.cancelled():
            look.exception()  # seen: who needs its answer raises it, the others go on and ask for another look

    async def aclose(self) -> None:
        self._initialize = True

    async def shut(self) -> None:
        """Close all connections."""
        if self._look is not None:
            self._look.cancel()
            await asyncio.wait({self._look})
        await self.nodes_manager.aclose()
        await self.nodes_manager.aclose("startup_nodes")
        self._initialize = True  # says to redis-py that nothing is open

    def pipeline(self, transaction: Any = None, shard_hint: Any = None) -> ClusterPipeline:
        pipe = _ClusterPipeline(self, transaction)  # type: ignore[abstract]  # its attribute is set in __init__
        pipe._bounds = self._bounds
        return pipe


class _ClusterPipeline(ClusterPipeline):
    _bounds: Bounds

    async def execute(self, raise_on_error: bool = True, allow_redirections: bool = True) -> list[Any]:
        return cast(list[Any], await self._bounds.run(super().execute, raise_on_error, allow_redirections))
