"""What the clients do better than redis-py's own: each property beside its negative control, the stock client."""

from __future__ import annotations

import asyncio
import errno
import sys
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis import exceptions as redis
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from support import Recorded

from callboard.clients import urgent
from callboard.connections import Connections
from callboard.messages import new_id
from callboard.settings import Settings
from callboard_local import FaultProxy, ValkeyCluster, ValkeyServer

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def connected(port: int, *, cluster: str = "false", **limits: Any) -> AsyncIterator[Connections]:
    settings = Settings(redis_host="127.0.0.1", redis_port=port, redis_cluster=cluster)  # type: ignore[arg-type]
    async with Connections(settings, Recorded().telemetry, **limits) as connections:
        yield connections


@asynccontextmanager
async def stock(port: int, **options: Any) -> AsyncIterator[Redis]:
    client = Redis(host="127.0.0.1", port=port, **options)
    try:
        yield client
    finally:
        await client.aclose()


async def ended(call: Awaitable[Any]) -> Any:
    """What became of a call: its result or its error."""
    try:
        return await call
    except redis.RedisError as error:
        return error


class Proxy:
    """A TCP proxy to the server that loses, once, the reply to a command: it drops the connection instead."""

    def __init__(self, target: int, command: bytes) -> None:
        self.command = command
        self.seen = 0
        self._target = target
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await self._server.wait_closed()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers += [writer, upstream]
        try:
            while request := await reader.read(65_536):
                upstream.write(request)
                reply = await upstream_reader.read(65_536)
                if self.command in request:
                    self.seen += 1
                    if self.seen == 1:
                        return
                writer.write(reply)
        finally:
            writer.transport.abort()
            upstream.transport.abort()


# -- a hung server ----------------------------------------------------------------------------------------------------


async def test_a_call_to_a_hung_server_ends(own_valkey: ValkeyServer) -> None:
    async with (
        connected(own_valkey.port, attempt_timeout_s=0.1, call_limit_s=0.5) as ours,
        stock(own_valkey.port, socket_timeout=0.1, socket_connect_timeout=0.1) as theirs,
    ):
        for client in (ours.commands, ours.publisher, theirs):
            await client.ping()
        own_valkey.pause()
        control = asyncio.create_task(ended(theirs.ping()))
        beats = 0
        async with asyncio.timeout(1):
            pipe: Any = ours.commands.pipeline(transaction=False)
            pipe.get("k")
            for call in (ours.commands.get("k"), ours.publisher.publish("c", "m"), pipe.execute()):
                task = asyncio.create_task(ended(call))
                while not task.done():
                    beats += 1
                    await asyncio.sleep(0.005)
                assert isinstance(await task, redis.TimeoutError)
        assert beats > 20  # the loop lived on
        assert not control.done()  # ten retries
        own_valkey.resume()
        assert await control is True


async def test_a_crowd_at_a_hung_server_ends_too(own_valkey: ValkeyServer) -> None:
    async with connected(own_valkey.port, attempt_timeout_s=0.2, call_limit_s=0.5, max_connections=2) as ours:
        await ours.commands.ping()
        own_valkey.pause()
        async with asyncio.timeout(1.5):
            outcomes = await asyncio.gather(*(ours.commands.get("k") for _ in range(200)), return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {redis.TimeoutError}
        own_valkey.resume()
        assert await ours.commands.ping()


async def test_the_pool_is_bounded_and_its_queue_waits(own_valkey: ValkeyServer) -> None:
    async with connected(own_valkey.port, max_connections=3) as ours:
        await asyncio.gather(*(ours.commands.incr("n") for _ in range(300)))
        assert await ours.commands.get("n") == b"300"
        assert len(await ours.commands.client_list()) <= 3


async def test_what_is_urgent_passes_a_crowd_of_which_nobody_is_sent_in_vain(own_valkey: ValkeyServer) -> None:
    async def urgently(call: Awaitable[Any]) -> Any:
        urgent.set(True)
        return await call

    async with (
        FaultProxy(own_valkey.host, own_valkey.port) as proxy,
        connected(int(proxy.port), max_connections=2, attempt_timeout_s=30, call_limit_s=6) as ours,
    ):
        await asyncio.gather(ours.commands.ping(), ours.commands.ping())
        proxy.delay_s = 0.45  # the seventh turn would end a little after the limit
        crowd = [asyncio.create_task(ended(ours.commands.incr("n"))) for _ in range(60)]
        await asyncio.sleep(0)
        late = asyncio.create_task(ended(ours.commands.get("k")))
        lease = asyncio.create_task(urgently(ours.commands.get("lease")))
        await asyncio.wait({late, lease}, return_when=asyncio.FIRST_COMPLETED)
        assert lease.result() is None
        assert not late.done()
        outcomes = await asyncio.gather(*crowd)
        assert isinstance(await late, redis.TimeoutError)
    served = [outcome for outcome in outcomes if isinstance(outcome, int)]
    assert 0 < len(served) < len(outcomes)
    assert own_valkey.ask("GET", "n") == str(len(served))


# -- a lost reply -----------------------------------------------------------------------------------------------------


async def test_a_publish_whose_reply_is_lost_is_not_sent_twice(own_valkey: ValkeyServer) -> None:
    async with Proxy(own_valkey.port, b"PUBLISH") as proxy, connected(proxy.port) as ours:
        with pytest.raises(redis.ConnectionError):
            await ours.publisher.publish("c", "m")
        assert proxy.seen == 1
    async with Proxy(own_valkey.port, b"PUBLISH") as proxy, connected(proxy.port) as ours:
        await ours.commands.publish("c", "m")
        assert proxy.seen == 2  # the control: the client for commands does retry


# -- a connection that died in the pool -------------------------------------------------------------------------------


@pytest.fixture
def cluster() -> Iterator[ValkeyServer]:
    """One node that owns all slots: what ElastiCache Serverless looks like."""
    with ValkeyCluster(1, 0) as made:
        yield made.nodes[0]


async def test_a_pooled_connection_that_died_costs_no_call(cluster: ValkeyServer) -> None:
    control = RedisCluster(host="127.0.0.1", port=cluster.port, retry=Retry(NoBackoff(), 0))
    async with connected(cluster.port, cluster="true") as ours, stock(cluster.port) as killer:
        await ours.publisher.publish("c", "m")
        await control.publish("c", "m")
        await killer.client_kill_filter(_type="normal", skipme=True)
        assert await ours.publisher.publish("c", "m") == 0
        with pytest.raises(redis.ConnectionError):
            await control.publish("c", "m")
    await control.initialize()  # only then does it close what it has open
    await control.aclose()


# -- a cluster of several nodes ---------------------------------------------------------------------------------------


@pytest.fixture
def nodes() -> Iterator[list[ValkeyServer]]:
    """Three that share the slots, of which none takes over from another."""
    with ValkeyCluster(3, 0, node_timeout_s=600) as made:
        yield made.nodes


def moved(nodes: list[ValkeyServer]) -> int:
    return sum("errorstat_MOVED" in node.ask("INFO", "errorstats") for node in nodes)


async def test_the_first_script_goes_to_the_node_that_has_its_key(nodes: list[ValkeyServer]) -> None:
    for number in range(10):
        async with connected(nodes[0].port, cluster="true") as ours:
            assert await ours.commands.eval("return KEYS[1]", 1, f"k{number}") == b"k%d" % number
    assert moved(nodes) == 0
    async with asyncio.timeout(20):
        while not moved(nodes):  # the control: the stock client sends it to any node
            theirs = RedisCluster(host="127.0.0.1", port=nodes[0].port)
            await theirs.eval("return KEYS[1]", 1, "k")
            await theirs.aclose()


async def test_a_node_that_hangs_does_not_hold_up_the_calls_of_the_others(
    nodes: list[ValkeyServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    hung = nodes[0]

    def hung_first(asked: list[Any]) -> None:
        asked.sort(key=lambda node: node.port != hung.port)

    theirs = RedisCluster(host="127.0.0.1", port=nodes[1].port, socket_timeout=1, retry=Retry(NoBackoff(), 0))
    async with connected(nodes[1].port, cluster="true") as connections:
        ours: Any = connections.commands
        await ours.get("k")
        await theirs.get("k")
        key = {ours.get_node_from_key(f"k{number}").port: f"k{number}" for number in range(50)}
        monkeypatch.setattr("redis.asyncio.cluster.random.shuffle", hung_first)  # whom to ask where the nodes are
        hung.pause()
        try:
            for client in (ours, theirs):
                assert isinstance(await ended(client.get(key[hung.port])), Exception)
            for node in nodes[1:]:
                assert await ours.get(key[node.port]) is None
                assert await ours.pipeline(transaction=False).get(key[node.port]).execute() == [None]
            assert ours._look  # it is being asked, and nobody waits for its answer
            await theirs.get(key[nodes[1].port])
            assert not theirs._initialize  # the control: this call has waited until it was known
        finally:
            hung.resume()
        async with asyncio.timeout(20):
            while isinstance(await ended(ours.get(key[hung.port])), Exception):
                await asyncio.sleep(0.01)
    await theirs.initialize()  # only then does it close what it has open
    await theirs.aclose()


# -- cancellation -----------------------------------------------------------------------------------------------------


async def count_swallowed(client: Any) -> int:
    """Cancel a task that sends one command after the other, at every moment of its cycle; how often it goes on."""

    async def send_for_ever() -> None:
        while True:
            await client.ping()

    swallowed = 0
    for moment in range(60):
        task = asyncio.create_task(send_for_ever())
        for _ in range(moment):
            await asyncio.sleep(0)
        task.cancel()
        for _ in range(50):
            await asyncio.sleep(0)
        while not task.done():
            swallowed += 1
            task.cancel()
            await asyncio.wait({task}, timeout=0.02)
    return swallowed


async def test_a_cancellation_is_never_swallowed(valkey_server: ValkeyServer) -> None:
    async with connected(valkey_server.port) as ours, stock(valkey_server.port) as theirs:
        assert await count_swallowed(ours.commands) == 0
        assert bool(await count_swallowed(theirs)) == (sys.version_info < (3, 12))


# -- the pub/sub connection -------------------------------------------------------------------------------------------


async def test_the_subscriber_gives_all_that_came_in_one_read(valkey_server: ValkeyServer) -> None:
    channel = new_id()
    async with connected(valkey_server.port) as ours:
        subscriber = ours.subscriber()
        await subscriber.connect()
        subscriber.send(("SUBSCRIBE", channel), ("SUBSCRIBE", f"{channel}é"), ("NONSENSE", "x"))
        replies: list[Any] = []
        while len(replies) < 3:
            replies += await subscriber.receive()
        assert replies[:2] == [[b"subscribe", channel.encode(), 1], [b"subscribe", f"{channel}é".encode(), 2]]
        assert isinstance(replies[2], Exception)
        pipe = ours.commands.pipeline(transaction=False)
        for number in range(100):
            pipe.publish(channel, str(number))
        await pipe.execute()
        batches: list[list[Any]] = []
        while sum(len(batch) for batch in batches) < 100:
            batches.append(await subscriber.receive())
        assert [reply[2] for batch in batches for reply in batch] == [b"%d" % number for number in range(100)]
        assert len(batches) < 50
        await subscriber.close()
        with pytest.raises(redis.ConnectionError):
            await subscriber.receive()


async def test_a_pubsub_socket_that_dies_of_a_time_out_does_not_freeze_the_loop(valkey_server: ValkeyServer) -> None:
    """What TCP keepalive does to a connection into a black hole: the kernel reports ETIMEDOUT to the transport."""
    dead = TimeoutError(errno.ETIMEDOUT, "Connection timed out")
    async with connected(valkey_server.port) as ours, stock(valkey_server.port) as theirs:
        subscriber = ours.subscriber()
        await subscriber.connect()
        subscriber.send(("SUBSCRIBE", "c"))
        await subscriber.receive()
        reading = asyncio.create_task(subscriber.receive())
        await asyncio.sleep(0)
        _transport(subscriber._connection)._fatal_error(dead)
        async with asyncio.timeout(5):
            with pytest.raises(OSError):
                await reading
        await subscriber.close()

        control: Any = theirs.pubsub()
        await control.subscribe("c")
        await control.get_message(timeout=1)
        _transport(control.connection)._fatal_error(dead)
        await asyncio.sleep(0.01)
        beats = 0

        async def beat() -> None:
            nonlocal beats
            while True:
                beats += 1
                await asyncio.sleep(0)

        beating = asyncio.create_task(beat())
        for _ in range(1000):
            assert await control.get_message(timeout=1) is None
        assert beats == 0  # a thousand times nothing, and nobody else ran
        beating.cancel()
        await asyncio.wait({beating})
        await control.aclose()


def _transport(connection: Any) -> Any:
    return connection._writer.transport
